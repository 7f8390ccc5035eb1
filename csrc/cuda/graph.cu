// Capture and launch of graphs: what core/graph.h declares for CUDA.
#include <string>

#include "core/error.h"
#include "core/graph.h"
#include "cuda/common.cuh"

namespace ernie::cuda {
namespace {

// As raise_error, but what says that there can be no graph is no fault of the device.
void check_graph(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return;
  if (error == cudaErrorNotSupported ||
      (error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorStreamCaptureWrongThread)) {
    cudaGetLastError();
    throw UnsupportedError(std::string("graph: ") + call + " failed: " + cudaGetErrorName(error) +
                           " (" + cudaGetErrorString(error) + ")");
  }
  raise_error(call, error);
}

class CapturedGraph {
 public:
  CapturedGraph() = default;
  ~CapturedGraph() {
    if (graph_ != nullptr) ignore_error(cudaGraphDestroy(graph_));
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  cudaGraph_t* out() { return &graph_; }
  cudaGraph_t get() const { return graph_; }

 private:
  cudaGraph_t graph_ = nullptr;
};

// In any case the stream is captured no more, and gone.
cudaError_t end_and_release(const Stream& stream, CapturedGraph* graph) {
  const cudaError_t error = cudaStreamEndCapture(stream_of(stream), graph->out());
  if (error != cudaSuccess) cudaGetLastError();
  ignore_error(cudaStreamDestroy(stream_of(stream)));
  return error;
}

}  // namespace

// A stream that the legacy default one, on which other threads may work, does not wait for; and a
// mode in which other threads may allocate meanwhile.
void* begin_capture(Device device) {
  const DeviceGuard guard(device);
  cudaStream_t stream = nullptr;
  check_graph("cudaStreamCreateWithFlags",
              cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (error != cudaSuccess) ignore_error(cudaStreamDestroy(stream));
  check_graph("cudaStreamBeginCapture", error);
  return stream;
}

void* end_capture(const Stream& stream) {
  CapturedGraph graph;
  check_graph("cudaStreamEndCapture", end_and_release(stream, &graph));
  const DeviceGuard guard(stream.device);
  cudaGraphExec_t exec = nullptr;
  check_graph("cudaGraphInstantiate", cudaGraphInstantiate(&exec, graph.get(), 0));
  return exec;
}

void drop_capture(const Stream& stream) {
  CapturedGraph graph;
  end_and_release(stream, &graph);
}

void launch_graph(void* graph, Device device) {
  const DeviceGuard guard(device);
  if (const cudaError_t error = cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), nullptr);
      error != cudaSuccess)
    raise_error("cudaGraphLaunch", error);
}

// What is still running is done before it goes: the runtime sees to that.
void destroy_graph(void* graph, Device) {
  ignore_error(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

}  // namespace ernie::cuda
