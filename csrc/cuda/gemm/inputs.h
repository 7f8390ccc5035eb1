// What a plan is told about a call: the GPU, and where the rows of its tensors begin.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/tensor.h"
#include "cuda/common.cuh"

namespace ernie::cuda {

// What a plan asks of a GPU. Read once a device: the driver answers in microseconds, an op in one.
struct Gpu {
  int capability, sm_count;
};

inline Gpu gpu_of(int device) {
  constexpr int kMaxDevices = 64;
  static std::atomic<uint64_t> known[kMaxDevices];  // capability, sm_count; 0: not asked yet
  const bool cached = device >= 0 && device < kMaxDevices;
  if (const uint64_t seen = cached ? known[device].load(std::memory_order_relaxed) : 0; seen != 0)
    return {static_cast<int>(seen >> 32), static_cast<int>(seen)};
  int major = 0, minor = 0, sm_count = 0;
  ERNIE_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  ERNIE_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  ERNIE_CUDA_CHECK(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device));
  const Gpu gpu{10 * major + minor, sm_count};
  if (cached) known[device].store(uint64_t{static_cast<uint32_t>(gpu.capability)} << 32 | sm_count);
  return gpu;
}

constexpr int64_t kVectorBytes = 16;

inline bool aligned(const TensorView& t) {
  return reinterpret_cast<uintptr_t>(t.data) % kVectorBytes == 0;
}

// Every row starts at a multiple of 16 bytes, after the row before it: TMA knows no stride of 0 or
// less, which a view may have. A single row has no next one, whatever its stride.
inline bool rows_aligned(const TensorView& t) {
  return aligned(t) && (t.size(0) <= 1 || (t.step(0) >= t.size(1) &&
                                           t.step(0) * size_of(t.dtype) % kVectorBytes == 0));
}

}  // namespace ernie::cuda
