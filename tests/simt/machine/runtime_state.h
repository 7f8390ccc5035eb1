#pragma once
// What the calls of the CUDA runtime on the machine have in common: the lock, streams, captures.
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "machine/global_memory.h"
#include "machine/report.h"
#include "machine/runtime_calls.h"

// What a stream has captured; a graph is the same. The memory lives as long as one that uses it.
struct CUgraph_st {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;  // that began the capture
  bool invalid = false;
  struct Memory {
    std::set<void*> owned;
    ~Memory() {
      for (void* p : owned) simt::global_memory().release(p);
    }
  };
  std::vector<std::function<cudaError_t()>> work;
  std::shared_ptr<Memory> memory = std::make_shared<Memory>();
};
struct CUgraphExec_st : CUgraph_st {};
struct CUstream_st {
  int device = 0;
};

namespace simt {

// One thing at a time, whichever OS thread asks.
inline std::recursive_mutex g_machine;
inline int g_devices = 1;

#define ENTER(name, stream, ...)                                                        \
  const std::lock_guard<std::recursive_mutex> lock(simt::g_machine);                    \
  if (const cudaError_t injected_error = simt::enter_call(name, stream, ##__VA_ARGS__); \
      injected_error != cudaSuccess)                                                    \
  return simt::note(injected_error)

// As in CUDA, an error that a call reports is the last error too.
inline cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) set_last_error(error);
  return error;
}

inline std::string field(const char* name, uint64_t value) {
  return std::string("\"") + name + "\": " + std::to_string(value);
}

bool known(cudaStream_t stream);
// A launch or an event on a stream of a device that is not current is refused.
bool known_here(cudaStream_t stream);

// The graph that the stream's capture fills, or null.
cudaGraph_t captured_in(cudaStream_t stream);

// Does the work, or keeps it where the stream is being captured.
cudaError_t queue(cudaStream_t stream, std::function<cudaError_t()> work);

// What waits, allocates or frees at once may not be called while a stream is captured: by anybody,
// or in the mode of threads by the thread that captures. It ends the capture.
cudaError_t refuse_capture();

// What a block may have, in bytes, on a GPU of ERNIE_SIMT_CAPABILITY.
int shared_memory_limit();

}  // namespace simt
