// The one place where tensor memory is allocated and released, on any device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace ernie {

// Zero bytes give a non-null owner of nothing. CPU memory is 64-byte aligned, on huge pages where
// the kernel grants them, and not initialised. Throws OutOfMemoryError that names the bytes asked.
std::shared_ptr<void> allocate(int64_t nbytes, const Stream& stream);

// Host memory from which and to which `device` copies by itself, so that a copy need not wait. As
// allocate() else.
std::shared_ptr<void> allocate_pinned(int64_t nbytes, Device device);

// Throws DeviceError: `what`, a call or a device, needs the CUDA backend in a build without it.
[[noreturn]] void raise_no_cuda(const std::string& what);

// Bytes now held by allocate() on the CPU, and the highest they have been: tests watch leaks here.
int64_t cpu_bytes_allocated();
int64_t cpu_bytes_peak();
void reset_cpu_bytes_peak();

// Copies `nbytes` between any two devices; returns when the host may read or reuse host memory.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, int64_t nbytes,
                void* stream);

// Waits for all that is queued on the default stream of `device`; on the CPU nothing is.
void synchronize(Device device);

struct DeviceMemory {
  int64_t free, total;  // bytes
};
// Of a GPU. What tensors have given back is free, whether the driver has it again or not.
DeviceMemory device_memory(Device device);

// Memory that one CPU thread reuses between calls, for a kernel's panels and partial sums. Grows
// to the largest size asked and is released with the thread. 64-byte aligned; contents unspecified.
// Nested users take distinct slots.
enum class ScratchSlot : uint8_t {
  kPanel,
  kAccumulator,
  kRows,
  kGathered,
  kPartial,
  kSplits,
  kBlocks,
  kCount
};
void* scratch(ScratchSlot slot, int64_t nbytes);

namespace cuda {
std::shared_ptr<void> allocate(int64_t nbytes, const Stream& stream);
std::shared_ptr<void> allocate_pinned(int64_t nbytes, Device device);
void copy_bytes(void* to, const void* from, int64_t nbytes, Device device, void* stream);
void queue_copy(void* to, const void* from, int64_t nbytes, const Stream& stream);
// Work queued on `stream` after this call starts only when what is now on `other` is done.
void wait_for(const Stream& stream, void* other);
// Whether what is queued on `stream` becomes part of a graph instead of running.
bool is_capturing(const Stream& stream);
void synchronize(const Stream& stream);
DeviceMemory device_memory(Device device);
int device_count();  // 0 without a driver or a GPU
}  // namespace cuda

}  // namespace ernie
