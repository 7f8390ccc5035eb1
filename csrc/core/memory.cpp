#include "core/memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/checked.h"
#include "core/error.h"
#include "core/graph.h"

namespace ernie {
namespace {

constexpr int64_t kAlignment = 64;
// From this size on memory comes straight from mmap, aligned for huge pages: streaming weights
// from them is some 5 % faster, and freed memory returns to the system at once.
constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kMapThreshold = 2 * kHugePage;

std::atomic<int64_t> g_allocated{0}, g_peak{0};

void count(int64_t nbytes) {
  const int64_t now = g_allocated.fetch_add(nbytes) + nbytes;
  int64_t peak = g_peak.load();
  while (now > peak && !g_peak.compare_exchange_weak(peak, now)) {
  }
}

[[noreturn]] void fail(int64_t nbytes) {
  throw OutOfMemoryError("host memory: could not allocate " + std::to_string(nbytes) + " bytes (" +
                         std::to_string(g_allocated.load()) +
                         " bytes of tensors are held already); use a smaller batch, context or "
                         "model");
}

void* allocate_aligned(int64_t nbytes) {
  if (nbytes < 0 || nbytes > (int64_t{1} << 47)) fail(nbytes);
  if (nbytes < kMapThreshold) {
    void* p = std::aligned_alloc(kAlignment, round_up(nbytes, kAlignment));
    if (p == nullptr) fail(nbytes);
    return p;
  }
  // Over-map by one huge page, then give back what lies outside the aligned range.
  const int64_t length = round_up(nbytes, kHugePage);
  char* base = static_cast<char*>(mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) fail(nbytes);
  char* aligned = reinterpret_cast<char*>(
      round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(base)), kHugePage));
  if (aligned > base) munmap(base, aligned - base);
  char* end = base + length + kHugePage;
  if (end > aligned + length) munmap(aligned + length, end - (aligned + length));
  madvise(aligned, length, MADV_HUGEPAGE);
  return aligned;
}

void release(void* p, int64_t nbytes) {
  if (nbytes < kMapThreshold)
    std::free(p);
  else
    munmap(p, round_up(nbytes, kHugePage));
}

class Scratch {
 public:
  ~Scratch() {
    for (int i = 0; i < kSlots; ++i)
      if (data_[i] != nullptr) release(data_[i], size_[i]);
  }

  void* get(int slot, int64_t nbytes) {
    if (nbytes > size_[slot]) {
      const int64_t size = round_up(nbytes, kHugePage / 8);
      void* fresh = allocate_aligned(size);
      if (data_[slot] != nullptr) release(data_[slot], size_[slot]);
      data_[slot] = fresh;
      size_[slot] = size;
    }
    return data_[slot];
  }

 private:
  static constexpr int kSlots = static_cast<int>(ScratchSlot::kCount);
  void* data_[kSlots] = {};
  int64_t size_[kSlots] = {};
};

}  // namespace

std::shared_ptr<void> allocate(int64_t nbytes, const Stream& stream) {
  if (stream.device.type == DeviceType::kCuda) {
    if (nbytes > 0) refuse_capture("allocates memory");
#if ERNIE_WITH_CUDA
    return cuda::allocate(nbytes, stream);
#else
    raise_no_cuda("device " + to_string(stream.device));
#endif
  }
  if (nbytes == 0) return std::shared_ptr<void>(&g_allocated, [](void*) {});
  void* p = allocate_aligned(nbytes);
  count(nbytes);
  return std::shared_ptr<void>(p, [nbytes](void* q) {
    release(q, nbytes);
    g_allocated.fetch_sub(nbytes);
  });
}

std::shared_ptr<void> allocate_pinned(int64_t nbytes, Device device) {
  refuse_capture("allocates memory");
#if ERNIE_WITH_CUDA
  if (device.type == DeviceType::kCuda) return cuda::allocate_pinned(nbytes, device);
#else
  if (device.type == DeviceType::kCuda) raise_no_cuda("device " + to_string(device));
#endif
  return allocate(nbytes, {});
}

void raise_no_cuda(const std::string& what) {
  throw DeviceError(what + ": this build has no CUDA backend (configured with ERNIE_CUDA=OFF)");
}

int64_t cpu_bytes_allocated() { return g_allocated.load(); }
int64_t cpu_bytes_peak() { return g_peak.load(); }
void reset_cpu_bytes_peak() { g_peak.store(g_allocated.load()); }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, int64_t nbytes,
                void* stream) {
  if (nbytes == 0) return;
  if (to_device.type == DeviceType::kCpu && from_device.type == DeviceType::kCpu) {
    std::memcpy(to, from, nbytes);
    return;
  }
  refuse_capture("waits for the GPU");
#if ERNIE_WITH_CUDA
  const Device device = to_device.type == DeviceType::kCuda ? to_device : from_device;
  cuda::copy_bytes(to, from, nbytes, device, stream);
#else
  (void)stream;
  raise_no_cuda("copy");
#endif
}

void synchronize(Device device) {
  if (device.type == DeviceType::kCpu) return;
  refuse_capture("waits for the GPU");
#if ERNIE_WITH_CUDA
  cuda::synchronize({device, nullptr});
#else
  raise_no_cuda("synchronize: " + to_string(device));
#endif
}

DeviceMemory device_memory(Device device) {
  if (device.type == DeviceType::kCpu)
    throw ArgumentError("device_memory: device: expected cuda or cuda:N, got cpu");
  refuse_capture("waits for the GPU");
#if ERNIE_WITH_CUDA
  return cuda::device_memory(device);
#else
  raise_no_cuda("device_memory: " + to_string(device));
#endif
}

void* scratch(ScratchSlot slot, int64_t nbytes) {
  thread_local Scratch s;
  return s.get(static_cast<int>(slot), nbytes);
}

}  // namespace ernie
