#include "core/graph.h"

#include <string>
#include <utility>

#include "core/error.h"
#include "core/memory.h"

namespace ernie {
namespace {

thread_local Stream t_capture;  // without a handle: none

bool is_captured() { return t_capture.handle != nullptr; }

}  // namespace

#if ERNIE_WITH_CUDA

Graph::~Graph() { cuda::destroy_graph(handle_, device_); }

void Graph::launch() const {
  refuse_capture("launches a graph");
  cuda::launch_graph(handle_, device_);
}

GraphCapture::GraphCapture(Device device) {
  if (device.type != DeviceType::kCuda)
    throw ArgumentError("Graph: device: expected cuda or cuda:N, got " + to_string(device));
  if (is_captured())
    throw ArgumentError("Graph: expected one capture at a time in a thread, got another within");
  stream_ = {device, cuda::begin_capture(device)};
  t_capture = stream_;
}

GraphCapture::~GraphCapture() {
  if (stream_.handle != nullptr) cuda::drop_capture(end());
}

std::unique_ptr<Graph> GraphCapture::finish() {
  const Stream stream = end();
  return std::make_unique<Graph>(cuda::end_capture(stream), stream.device);
}

Stream GraphCapture::end() {
  t_capture = {};
  return std::exchange(stream_, {});
}

#else

Graph::~Graph() = default;
void Graph::launch() const { raise_no_cuda("Graph"); }
GraphCapture::GraphCapture(Device device) {
  if (device.type == DeviceType::kCuda) raise_no_cuda("Graph: " + to_string(device));
  throw ArgumentError("Graph: device: expected cuda or cuda:N, got " + to_string(device));
}
GraphCapture::~GraphCapture() = default;
std::unique_ptr<Graph> GraphCapture::finish() { raise_no_cuda("Graph"); }

#endif

Stream captured_stream(const Stream& stream) {
  if (!is_captured() || stream.device.type != DeviceType::kCuda) return stream;
  if (stream.device != t_capture.device || stream.handle != nullptr)
    throw UnsupportedError("graph: expected calls on the default stream of " +
                           to_string(t_capture.device) + " while it is captured, got one on " +
                           (stream.device == t_capture.device ? std::string("another stream")
                                                              : to_string(stream.device)));
  return t_capture;
}

void refuse_capture(const char* what) {
  if (is_captured())
    throw UnsupportedError("graph: expected launches and queued copies alone while " +
                           to_string(t_capture.device) + " is captured, got a call that " + what);
}

}  // namespace ernie
