// Work of a GPU that is kept once and then repeated for the price of one launch: a CUDA graph.
#pragma once

#include <memory>

#include "core/tensor.h"

namespace ernie {

// Kept work, done in the order in which it was queued and with the arguments of that time: whoever
// keeps the graph keeps the memory that its work reads and writes.
class Graph {
 public:
  Graph(void* handle, Device device) : handle_(handle), device_(device) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Queues all of it on the device's default stream. Throws CudaError, and UnsupportedError where
  // this thread captures: the graph that is made would not contain it.
  void launch() const;

 private:
  void* handle_;  // cudaGraphExec_t
  Device device_;
};

// While one lives, what its thread queues on the default stream of `device` is kept instead of
// done. What a graph cannot repeat is refused there: see refuse_capture and captured_stream.
class GraphCapture {
 public:
  // Throws ArgumentError where this thread captures already or `device` is the CPU, DeviceError,
  // and UnsupportedError where the GPU or its driver cannot capture.
  explicit GraphCapture(Device device);
  ~GraphCapture();  // drops what finish() has not taken
  GraphCapture(const GraphCapture&) = delete;
  GraphCapture& operator=(const GraphCapture&) = delete;

  // Ends the capture. Throws as the constructor does: UnsupportedError where something that was
  // called meanwhile, of this library or of another, has made the capture invalid.
  std::unique_ptr<Graph> finish();

 private:
  Stream end();

  Stream stream_;
};

// The stream that a call meant for `stream` runs on: where this thread captures, its capture's for
// the default one. Throws UnsupportedError for any other, whose work the graph would miss.
Stream captured_stream(const Stream& stream);

// Throws UnsupportedError where this thread captures: `what` happens once, not at each launch.
void refuse_capture(const char* what);

namespace cuda {
void* begin_capture(Device device);             // a stream of its own
void* end_capture(const Stream& stream);        // releases the stream, also where it throws
void drop_capture(const Stream& stream);        // the same without a graph; reports nothing
void launch_graph(void* graph, Device device);  // on the default stream
void destroy_graph(void* graph, Device device);
}  // namespace cuda

}  // namespace ernie
