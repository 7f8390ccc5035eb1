// What tests reach through ctypes (tests/simt/control.py): seed, recorded calls, failures on
// demand, and streams to capture. Nothing of it is in a build without the machine.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "machine/block.h"
#include "machine/global_memory.h"
#include "machine/runtime_calls.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void ernie_simt_set_seed(uint64_t seed) { simt::set_seed(seed); }
EXPORT uint64_t ernie_simt_seed() { return simt::seed(); }

EXPORT void ernie_simt_set_grid_limit(unsigned x, unsigned y, unsigned z) {
  simt::set_grid_limit({x, y, z});
}

// 1: loads and stores of kernels are instrumented.
EXPORT int ernie_simt_has_checks() { return ERNIE_SIMT_CHECKS; }

// The text stays until the next call.
EXPORT const char* ernie_simt_calls() {
  static std::string text;
  text = simt::calls_text();
  return text.c_str();
}
EXPORT void ernie_simt_clear_calls() { simt::clear_calls(); }

EXPORT void ernie_simt_fail_call(const char* name, int64_t nth, int error, int from_then_on) {
  simt::fail_call(name, nth, static_cast<cudaError_t>(error), from_then_on != 0);
}
EXPORT void ernie_simt_fail_no_call() { simt::fail_no_call(); }
EXPORT int ernie_simt_call_has_failed() { return simt::call_has_failed(); }

EXPORT void ernie_simt_set_device_count(int count) { simt::set_device_count(count); }
EXPORT int ernie_simt_current_device() { return simt::current_device(); }
EXPORT int ernie_simt_set_current_device(int device) { return cudaSetDevice(device); }

EXPORT uint64_t ernie_simt_allocations() {
  return simt::global_memory().allocations() + simt::pinned_allocations();
}
EXPORT uint64_t ernie_simt_bytes_allocated() { return simt::global_memory().bytes_allocated(); }

// Streams and graphs, as CUDA's functions of these names. Null where they fail.
EXPORT void* ernie_simt_stream_create() {
  cudaStream_t stream = nullptr;
  cudaStreamCreate(&stream);
  return stream;
}
EXPORT int ernie_simt_stream_destroy(void* stream) {
  return cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}
EXPORT int ernie_simt_begin_capture(void* stream) {
  return cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeGlobal);
}
EXPORT void* ernie_simt_end_capture(void* stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph) != cudaSuccess)
    return nullptr;
  cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  return exec;
}
EXPORT int ernie_simt_graph_launch(void* exec, void* stream) {
  return cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec), static_cast<cudaStream_t>(stream));
}
EXPORT void ernie_simt_graph_destroy(void* exec) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec));
}
