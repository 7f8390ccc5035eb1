// Device and pinned memory of the CUDA runtime on the SIMT machine.
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <new>

#include "machine/runtime_state.h"

struct CUmemPoolHandle_st {};

using namespace simt;

namespace {

std::map<uintptr_t, size_t> g_pinned;  // host memory: begin, bytes
CUmemPoolHandle_st g_pool;

// Of the host, and given by cudaHostAlloc.
bool is_pinned(const void* p, size_t size) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  const auto above = g_pinned.upper_bound(a);
  if (above == g_pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(above);
  return size <= bytes && a - begin <= bytes - size;
}

bool on_device(const void* p) { return global_memory().contains(reinterpret_cast<uintptr_t>(p)); }

cudaError_t copy(void* to, const void* from, size_t size) {
  if (size == 0) return cudaSuccess;
  const auto a = reinterpret_cast<uintptr_t>(to), b = reinterpret_cast<uintptr_t>(from);
  Region* target = global_memory().region_of(a, size);
  Region* source = global_memory().region_of(b, size);
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
  Region* region = global_memory().region_of(a, size);
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
    *p = global_memory().allocate(size);
  } catch (const std::bad_alloc&) {
    *p = nullptr;
  }
  return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t release(void* p) {
  return p == nullptr || global_memory().release(p) ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

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
  *free = global_memory().bytes_free();
  *total = GlobalMemory::kSpace;
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

size_t simt::pinned_allocations() {
  const std::lock_guard<std::recursive_mutex> lock(g_machine);
  return g_pinned.size();
}
