// The CUDA runtime on the SIMT machine. Work is done when it is queued, so streams and events keep
// no order of their own; that everything is queued where it belongs shows in the recorded calls.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "machine/block.h"
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
struct CUevent_st {
  int device = 0;
  cudaGraph_t captured_in = nullptr;
};
struct CUmemPoolHandle_st {};

namespace {

using simt::enter_call;

// One thing at a time, whichever OS thread asks.
std::recursive_mutex g_machine;
std::set<cudaStream_t> g_streams;
std::set<cudaEvent_t> g_events;
std::map<cudaStream_t, cudaGraph_t> g_capturing;
std::map<uintptr_t, size_t> g_pinned;  // host memory: begin, bytes
int g_devices = 1;
std::map<const void*, int> g_dynamic_limits;  // of kernels that have asked for more than 48 KiB
CUmemPoolHandle_st g_pool;

#define ENTER(name, stream, ...)                                                  \
  const std::lock_guard<std::recursive_mutex> lock(g_machine);                    \
  if (const cudaError_t injected_error = enter_call(name, stream, ##__VA_ARGS__); \
      injected_error != cudaSuccess)                                              \
  return note(injected_error)

// As in CUDA, an error that a call reports is the last error too.
cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) simt::set_last_error(error);
  return error;
}

std::string field(const char* name, uint64_t value) {
  return std::string("\"") + name + "\": " + std::to_string(value);
}

bool known(cudaStream_t stream) { return stream == nullptr || g_streams.contains(stream); }

// A launch or an event on a stream of a device that is not current is refused.
bool known_here(cudaStream_t stream) {
  return known(stream) && (stream == nullptr || stream->device == simt::current_device());
}

cudaGraph_t captured_in(cudaStream_t stream) {
  const auto capture = g_capturing.find(stream);
  return capture == g_capturing.end() ? nullptr : capture->second;
}

// Does the work, or keeps it where the stream is being captured.
cudaError_t queue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (!known(stream)) return cudaErrorInvalidResourceHandle;
  const auto capture = g_capturing.find(stream);
  if (capture == g_capturing.end()) return work();
  if (capture->second->invalid) return cudaErrorStreamCaptureInvalidated;
  capture->second->work.push_back(std::move(work));
  return cudaSuccess;
}

// What waits, allocates or frees at once may not be called while a stream is captured: by anybody,
// or in the mode of threads by the thread that captures. It ends the capture.
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

// Of the host, and given by cudaHostAlloc.
bool is_pinned(const void* p, size_t size) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  const auto above = g_pinned.upper_bound(a);
  if (above == g_pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(above);
  return size <= bytes && a - begin <= bytes - size;
}

int environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? std::atoi(value) : otherwise;
}

// 10 * major + minor, as ERNIE_SIMT_CAPABILITY gives it.
int capability() { return environment("ERNIE_SIMT_CAPABILITY", 90); }

// What a block may have, by the CUDA C++ Programming Guide's table of compute capabilities.
int shared_memory_limit() {
  switch (capability()) {
    case 80:
    case 87:
      return 163 << 10;
    case 86:
    case 89:
    case 120:
      return 99 << 10;
    default:
      return 227 << 10;
  }
}

cudaError_t error_of(simt::Fault fault) {
  switch (fault) {
    case simt::Fault::kOutOfBounds:
      return cudaErrorIllegalAddress;
    case simt::Fault::kMisaligned:
      return cudaErrorMisalignedAddress;
    case simt::Fault::kDeadlock:
    case simt::Fault::kTimeout:
      return cudaErrorLaunchTimeout;
    case simt::Fault::kInstruction:
      return cudaErrorIllegalInstruction;
    case simt::Fault::kStackOverflow:
      return cudaErrorHardwareStackError;
    default:
      return cudaErrorLaunchFailure;
  }
}

cudaError_t check_configuration(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 0xffff ||
      grid.z > 0xffff || threads == 0 || threads > 1024 || block.z > 64)
    return cudaErrorInvalidConfiguration;
  const auto limit = g_dynamic_limits.find(kernel);
  const int allowed = limit == g_dynamic_limits.end() ? 48 << 10 : limit->second;
  return dynamic_shared > static_cast<size_t>(allowed) ? cudaErrorInvalidValue : cudaSuccess;
}

bool on_device(const void* p) {
  return simt::global_memory().contains(reinterpret_cast<uintptr_t>(p));
}

cudaError_t copy(void* to, const void* from, size_t size) {
  if (size == 0) return cudaSuccess;
  const auto a = reinterpret_cast<uintptr_t>(to), b = reinterpret_cast<uintptr_t>(from);
  simt::Region* target = simt::global_memory().region_of(a, size);
  simt::Region* source = simt::global_memory().region_of(b, size);
  if ((on_device(to) && target == nullptr) || (on_device(from) && source == nullptr))
    return cudaErrorInvalidValue;
  std::memmove(to, from, size);
  if (target != nullptr && source != nullptr)
    target->mark_like(a, *source, b, size);
  else if (target != nullptr)
    target->mark_written(a, size);
  return cudaSuccess;
}

cudaError_t set(void* to, int value, size_t size) {
  if (size == 0) return cudaSuccess;
  const auto a = reinterpret_cast<uintptr_t>(to);
  simt::Region* region = simt::global_memory().region_of(a, size);
  if (region == nullptr) return cudaErrorInvalidValue;
  std::memset(to, value, size);
  region->mark_written(a, size);
  return cudaSuccess;
}

cudaError_t allocate(void** p, size_t size) {
  if (size == 0) {
    *p = nullptr;
    return cudaSuccess;
  }
  try {
    *p = simt::global_memory().allocate(size);
  } catch (const std::bad_alloc&) {
    *p = nullptr;
  }
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t release(void* p) {
  return p == nullptr || simt::global_memory().release(p) ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

// ------------------------------------------------------------------------------------- errors

cudaError_t cudaGetLastError() {
  const cudaError_t last = simt::take_last_error();
  const cudaError_t injected = enter_call("cudaGetLastError", nullptr);
  return injected != cudaSuccess ? injected : last;
}
cudaError_t cudaPeekAtLastError() { return simt::peek_last_error(); }

// ------------------------------------------------------------------------------------- device

cudaError_t cudaGetDeviceCount(int* count) {
  ENTER("cudaGetDeviceCount", nullptr);
  *count = g_devices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  ENTER("cudaGetDevice", nullptr);
  *device = simt::current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  ENTER("cudaSetDevice", nullptr, field("device", static_cast<uint64_t>(device)));
  if (device < 0 || device >= g_devices) return note(cudaErrorInvalidDevice);
  simt::current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  ENTER("cudaDeviceGetAttribute", nullptr, field("attribute", attribute));
  if (device < 0 || device >= g_devices) return note(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = environment("ERNIE_SIMT_SM_COUNT", capability() == 80 ? 108 : 132);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = shared_memory_limit() + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared_memory_limit();
      return cudaSuccess;
  }
  return note(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() {
  ENTER("cudaDeviceSynchronize", nullptr);
  return note(refuse_capture());
}

// ------------------------------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** p, size_t size) {
  ENTER("cudaMalloc", nullptr, field("bytes", size));
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  return note(allocate(p, size));
}
cudaError_t cudaFree(void* p) {
  ENTER("cudaFree", nullptr);
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  return note(release(p));
}
cudaError_t cudaMallocAsync(void** p, size_t size, cudaStream_t stream) {
  ENTER("cudaMallocAsync", stream, field("bytes", size));
  if (!known(stream)) return note(cudaErrorInvalidResourceHandle);
  const cudaError_t error = allocate(p, size);
  const cudaGraph_t graph = captured_in(stream);
  if (error == cudaSuccess && graph != nullptr) graph->memory->owned.insert(*p);
  return note(error);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  ENTER("cudaFreeAsync", stream);
  if (const cudaGraph_t graph = captured_in(stream); graph != nullptr)
    return note(graph->memory->owned.contains(p) ? cudaSuccess : cudaErrorInvalidValue);
  return note(queue(stream, [p] { return release(p); }));
}
cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) {
  ENTER("cudaHostAlloc", nullptr, field("bytes", size));
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  *p = size == 0 ? nullptr : std::malloc(size);
  if (*p == nullptr) return note(size == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
  g_pinned[reinterpret_cast<uintptr_t>(*p)] = size;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  ENTER("cudaFreeHost", nullptr);
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  if (p != nullptr && g_pinned.erase(reinterpret_cast<uintptr_t>(p)) == 0)
    return note(cudaErrorInvalidValue);
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  ENTER("cudaMemcpy", nullptr, field("bytes", size) + ", " + field("kind", kind));
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  return note(copy(to, from, size));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  ENTER("cudaMemcpyAsync", stream, field("bytes", size) + ", " + field("kind", kind));
  if (captured_in(stream) == nullptr)
    return note(queue(stream, [=] { return copy(to, from, size); }));
  // When the graph runs, what the host had here on the stack, or has freed since, is something
  // else.
  return note(queue(stream, [=] {
    for (const void* p : {static_cast<const void*>(to), from})
      if (!on_device(p) && !is_pinned(p, size)) return cudaErrorInvalidValue;
    return copy(to, from, size);
  }));
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
  ENTER("cudaMemset", nullptr, field("bytes", size));
  if (const cudaError_t error = refuse_capture(); error != cudaSuccess) return note(error);
  return note(set(to, value, size));
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  ENTER("cudaMemsetAsync", stream, field("bytes", size));
  return note(queue(stream, [=] { return set(to, value, size); }));
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  ENTER("cudaMemGetInfo", nullptr);
  *free = simt::global_memory().bytes_free();
  *total = simt::GlobalMemory::kSpace;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  ENTER("cudaDeviceGetDefaultMemPool", nullptr);
  if (device < 0 || device >= g_devices) return note(cudaErrorInvalidDevice);
  *pool = &g_pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void*) {
  ENTER("cudaMemPoolSetAttribute", nullptr);
  return note(pool == &g_pool ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  ENTER("cudaMemPoolTrimTo", nullptr);
  return note(pool == &g_pool ? cudaSuccess : cudaErrorInvalidValue);
}

// --------------------------------------------------------------------------- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  ENTER("cudaStreamCreateWithFlags", nullptr);
  *stream = new CUstream_st{simt::current_device()};
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
  *event = new CUevent_st{simt::current_device()};
  g_events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER("cudaEventRecord", stream);
  if (!known_here(stream) || !g_events.contains(event) || event->device != simt::current_device())
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
    if (error != cudaSuccess) return simt::peek_last_error() == error ? error : note(error);
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

// ------------------------------------------------------------------------------------- launches

namespace simt {

cudaError_t set_kernel_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  ENTER("cudaFuncSetAttribute", nullptr,
        "\"kernel\": \"" + kernel_name(kernel) + "\", " +
            field("value", static_cast<uint64_t>(value)));
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > shared_memory_limit())
    return note(cudaErrorInvalidValue);
  g_dynamic_limits[kernel] = value;
  return cudaSuccess;
}

void launch_kernel(const void* kernel, void (*run)(void*), const void* arguments, size_t size,
                   dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(g_machine);
  cudaError_t error = enter_call(
      "cudaLaunchKernel", stream,
      "\"kernel\": \"" + kernel_name(kernel) + "\", \"grid\": [" + std::to_string(grid.x) + ", " +
          std::to_string(grid.y) + ", " + std::to_string(grid.z) + "], \"block\": [" +
          std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
          std::to_string(block.z) + "], " + field("shared", dynamic_shared));
  if (error == cudaSuccess && !known_here(stream)) error = cudaErrorInvalidResourceHandle;
  if (error == cudaSuccess) error = check_configuration(kernel, grid, block, dynamic_shared);
  if (error != cudaSuccess) return set_last_error(error);
  // 16 bytes are as much as any parameter asks for.
  std::vector<std::max_align_t> kept(size / sizeof(std::max_align_t) + 1);
  std::memcpy(kept.data(), arguments, size);
  error = queue(stream, [=]() mutable {
    const Outcome outcome = run_grid({kernel,
                                      run,
                                      kept.data(),
                                      size,
                                      {grid.x, grid.y, grid.z},
                                      {block.x, block.y, block.z},
                                      dynamic_shared});
    if (outcome.ok) return cudaSuccess;
    set_last_error(error_of(outcome.fault), outcome.text);
    return error_of(outcome.fault);
  });
  if (error != cudaSuccess && peek_last_error() == cudaSuccess) set_last_error(error);
}

size_t pinned_allocations() {
  const std::lock_guard<std::recursive_mutex> lock(g_machine);
  return g_pinned.size();
}

void set_device_count(int count) { g_devices = count; }

}  // namespace simt

// ---------------------------------------------------------------------------------- error names

namespace {

struct ErrorWords {
  cudaError_t error;
  const char *name, *text;
};
#define NAMED(error) error, #error
constexpr ErrorWords kErrors[] = {
    {NAMED(cudaSuccess), "no error"},
    {NAMED(cudaErrorInvalidValue), "invalid argument"},
    {NAMED(cudaErrorMemoryAllocation), "out of memory"},
    {NAMED(cudaErrorInitializationError), "initialization error"},
    {NAMED(cudaErrorInvalidConfiguration), "invalid configuration argument"},
    {NAMED(cudaErrorInsufficientDriver), "CUDA driver version is insufficient"},
    {NAMED(cudaErrorNoDevice), "no CUDA-capable device is detected"},
    {NAMED(cudaErrorInvalidDevice), "invalid device ordinal"},
    {NAMED(cudaErrorNoKernelImageForDevice), "no kernel image is available"},
    {NAMED(cudaErrorECCUncorrectable), "uncorrectable ECC error encountered"},
    {NAMED(cudaErrorUnsupportedPtxVersion), "the PTX was compiled by a newer toolchain"},
    {NAMED(cudaErrorNvlinkUncorrectable), "uncorrectable NVLink error"},
    {NAMED(cudaErrorInvalidResourceHandle), "invalid resource handle"},
    {NAMED(cudaErrorIllegalAddress), "an illegal memory access was encountered"},
    {NAMED(cudaErrorLaunchOutOfResources), "too many resources requested for launch"},
    {NAMED(cudaErrorLaunchTimeout), "the launch timed out and was terminated"},
    {NAMED(cudaErrorAssert), "device-side assert triggered"},
    {NAMED(cudaErrorHardwareStackError), "hardware stack error"},
    {NAMED(cudaErrorIllegalInstruction), "an illegal instruction was encountered"},
    {NAMED(cudaErrorMisalignedAddress), "misaligned address"},
    {NAMED(cudaErrorInvalidAddressSpace), "operation not supported on address space"},
    {NAMED(cudaErrorInvalidPc), "invalid program counter"},
    {NAMED(cudaErrorLaunchFailure), "unspecified launch failure"},
    {NAMED(cudaErrorNotSupported), "operation not supported"},
    {NAMED(cudaErrorStreamCaptureUnsupported), "operation not permitted when capturing"},
    {NAMED(cudaErrorStreamCaptureInvalidated), "capture has been invalidated"},
    {NAMED(cudaErrorStreamCaptureImplicit), "capture depends on another stream"},
    {NAMED(cudaErrorStreamCaptureIsolation),
     "dependency created on uncaptured work in another stream"},
    {NAMED(cudaErrorStreamCaptureWrongThread),
     "attempt to terminate a thread-local capture sequence from another thread"},
    {NAMED(cudaErrorUnknown), "unknown error"},
};
#undef NAMED

const ErrorWords& words_for(cudaError_t error) {
  static constexpr ErrorWords kNone = {cudaErrorUnknown, "unrecognized error code",
                                       "unrecognized error code"};
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [&](const ErrorWords& w) { return w.error == error; });
  return found == std::end(kErrors) ? kNone : *found;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) { return words_for(error).name; }

const char* cudaGetErrorString(cudaError_t error) {
  const std::string& fault = simt::fault_text_of(error);
  return fault.empty() ? words_for(error).text : fault.c_str();
}
