// Streams, events and graphs of the CUDA runtime on the SIMT machine. Work is done when it is
// queued, so streams and events keep no order of their own; that everything is queued where it
// belongs shows in the recorded calls.
#include <map>
#include <set>

#include "machine/runtime_state.h"

struct CUevent_st {
  int device = 0;
  cudaGraph_t captured_in = nullptr;
};

namespace {

std::set<cudaStream_t> g_streams;
std::set<cudaEvent_t> g_events;
std::map<cudaStream_t, cudaGraph_t> g_capturing;

}  // namespace

namespace simt {

bool known(cudaStream_t stream) { return stream == nullptr || g_streams.contains(stream); }

bool known_here(cudaStream_t stream) {
  return known(stream) && (stream == nullptr || stream->device == current_device());
}

cudaGraph_t captured_in(cudaStream_t stream) {
  const auto capture = g_capturing.find(stream);
  return capture == g_capturing.end() ? nullptr : capture->second;
}

cudaError_t queue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (!known(stream)) return cudaErrorInvalidResourceHandle;
  const auto capture = g_capturing.find(stream);
  if (capture == g_capturing.end()) return work();
  if (capture->second->invalid) return cudaErrorStreamCaptureInvalidated;
  capture->second->work.push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t refuse_capture() {
  cudaError_t error = cudaSuccess;
  for (const auto& [stream, graph] : g_capturing) {
    if (graph->mode == cudaStreamCaptureModeRelaxed ||
        (graph->mode == cudaStreamCaptureModeThreadLocal &&
         graph->thread != std::this_thread::get_id()))
      continue;
    graph->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

}  // namespace simt

using namespace simt;

// --------------------------------------------------------------------------- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  ENTER("cudaStreamCreateWithFlags", nullptr);
  *stream = new CUstream_st{current_device()};
  g_streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  ENTER("cudaStreamDestroy", stream);
  if (g_streams.erase(stream) == 0) return note(cudaErrorInvalidResourceHandle);
  delete captured_in(stream);
  g_capturing.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ENTER("cudaStreamSynchronize", stream);
  if (!known(stream)) return note(cudaErrorInvalidResourceHandle);
  const cudaGraph_t graph = captured_in(stream);
  if (graph != nullptr) graph->invalid = true;
  return note(graph != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  ENTER("cudaStreamWaitEvent", stream);
  if (!known(stream) || !g_events.contains(event)) return note(cudaErrorInvalidResourceHandle);
  // A graph waits for nothing outside of it; nor does any stream join one, as CUDA would let it.
  if (captured_in(stream) == event->captured_in) return cudaSuccess;
  return note(stream == nullptr ? cudaErrorStreamCaptureImplicit : cudaErrorStreamCaptureIsolation);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  ENTER("cudaEventCreateWithFlags", nullptr);
  *event = new CUevent_st{current_device()};
  g_events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER("cudaEventRecord", stream);
  if (!known_here(stream) || !g_events.contains(event) || event->device != current_device())
    return note(cudaErrorInvalidResourceHandle);
  event->captured_in = captured_in(stream);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ENTER("cudaEventSynchronize", nullptr);
  return note(g_events.contains(event) ? refuse_capture() : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  ENTER("cudaEventDestroy", nullptr);
  if (g_events.erase(event) == 0) return note(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

// --------------------------------------------------------------------------------------- graphs

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  ENTER("cudaStreamIsCapturing", stream);
  if (!known(stream)) return note(cudaErrorInvalidResourceHandle);
  const cudaGraph_t graph = captured_in(stream);
  *status = graph == nullptr ? cudaStreamCaptureStatusNone
            : graph->invalid ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  ENTER("cudaStreamBeginCapture", stream);
  if (stream == nullptr) return note(cudaErrorStreamCaptureUnsupported);  // as CUDA has it
  if (!known(stream)) return note(cudaErrorInvalidResourceHandle);
  if (captured_in(stream) != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  g_capturing[stream] = new CUgraph_st{mode, std::this_thread::get_id()};
  return cudaSuccess;
}
// Ends the capture also where it fails.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::recursive_mutex> machine(g_machine);
  std::unique_ptr<CUgraph_st> captured(captured_in(stream));
  g_capturing.erase(stream);
  *graph = nullptr;
  ENTER("cudaStreamEndCapture", stream);
  if (captured == nullptr) return note(cudaErrorInvalidValue);
  if (captured->invalid) return note(cudaErrorStreamCaptureInvalidated);
  if (captured->mode != cudaStreamCaptureModeRelaxed &&
      captured->thread != std::this_thread::get_id())
    return note(cudaErrorStreamCaptureWrongThread);
  *graph = captured.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  ENTER("cudaGraphInstantiate", nullptr, field("nodes", graph->work.size()));
  *exec = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ENTER("cudaGraphLaunch", stream);
  for (const auto& work : exec->work) {
    const cudaError_t error = queue(stream, work);
    // A kernel's fault is the last error already, with the machine's words for it.
    if (error != cudaSuccess) return peek_last_error() == error ? error : note(error);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  ENTER("cudaGraphExecDestroy", nullptr);
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  ENTER("cudaGraphDestroy", nullptr);
  delete graph;
  return cudaSuccess;
}
