// What every CUDA file needs: error check, launch, shared memory, warp and block reductions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/tensor.h"

// For every call of the CUDA runtime whose failure matters.
#define ERNIE_CUDA_CHECK(call)                                        \
  do {                                                                \
    const cudaError_t err_ = (call);                                  \
    if (err_ != cudaSuccess) ::ernie::cuda::raise_error(#call, err_); \
  } while (0)

// The only ways to declare shared memory and (launch, below) to start a kernel: both are others
// with ERNIE_SIMT, which runs kernels on a machine without a GPU (tests/simt).
//   ERNIE_SHARED(float, partial, [kWarps]);    static
//   ERNIE_DYNAMIC_SHARED(char, smem);          LaunchConfig::smem bytes, 128-byte aligned
#if defined(ERNIE_SIMT)
#define ERNIE_SHARED(type, name, extent) SIMT_SHARED(type, name, extent)
#define ERNIE_DYNAMIC_SHARED(type, name) SIMT_DYNAMIC_SHARED(type, name)
#else
#define ERNIE_SHARED(type, name, extent) __shared__ type name extent
#define ERNIE_DYNAMIC_SHARED(type, name)                      \
  extern __shared__ __align__(128) char ernie_dynamic_smem[]; \
  type* const name = reinterpret_cast<type*>(ernie_dynamic_smem)
#endif

namespace ernie::cuda {

constexpr int kWarpSize = 32;

// Throws CudaError "<call> failed: <name> (<text>)" and what to do about it; OutOfMemoryError where
// that is the reason, and DeviceError where the build has no code for the GPU. Clears the runtime's
// last error, so that the next launch is not blamed for this call (memory.cu).
[[noreturn]] void raise_error(const char* call, cudaError_t error);

// For calls in destructors, which cannot report: forgets the error, if any.
inline void ignore_error(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
}

// Grids for work in rows of `items_per_row` items, one item a thread and step: x walks the rows, y
// the items. Both are cut at what the hardware takes; kernels loop by gridDim over the rest.
inline unsigned grid_of_rows(int64_t rows) {
  return static_cast<unsigned>(std::min<int64_t>(rows, 0x7fffffff));
}
inline dim3 grid_of_items(int64_t rows, int64_t items_per_row, int threads) {
  const int64_t blocks = (items_per_row + threads - 1) / threads;
  return dim3(grid_of_rows(rows), static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, 0xffff)));
}

// Whether all rows of a matrix begin and end at multiples of 16 bytes.
inline bool is_wide(const TensorView& t) {
  const int64_t width = size_of(t.dtype), unit = sizeof(uint4);
  return reinterpret_cast<uintptr_t>(t.data) % sizeof(uint4) == 0 &&
         t.step(0) * width % unit == 0 && t.size(1) * width % unit == 0;
}

struct LaunchConfig {
  dim3 grid, block;
  size_t smem = 0;  // bytes of dynamic shared memory
  cudaStream_t stream = nullptr;
};

// Raises the kernel's dynamic shared memory limit by itself where the config asks for more than
// the 48 KiB that need no permission.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const LaunchConfig& config, Args&&... args) {
  constexpr size_t kFreeSharedMemory = 48 << 10;
  if (config.smem > kFreeSharedMemory)
    ERNIE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(config.smem)));
#if defined(ERNIE_SIMT)
  simt::launch(kernel, config.grid, config.block, config.smem, config.stream,
               static_cast<Params>(args)...);
#else
  // clang-format off: beyond an #else it takes this for templates
  kernel<<<config.grid, config.block, config.smem, config.stream>>>(static_cast<Params>(args)...);
  // clang-format on
#endif
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess)
    raise_error("kernel launch", error);
}

inline cudaStream_t stream_of(const Stream& s) { return static_cast<cudaStream_t>(s.handle); }

// Makes `device` current for the enclosing scope; every launcher opens with one.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device) {
    ERNIE_CUDA_CHECK(cudaGetDevice(&previous_));
    if (device.index == previous_) return;
    ERNIE_CUDA_CHECK(cudaSetDevice(device.index));
    is_changed_ = true;
  }
  ~DeviceGuard() {
    if (is_changed_) ignore_error(cudaSetDevice(previous_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool is_changed_ = false;
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Every thread of the block gets the sum. kThreads is the block size, a multiple of 32. A second
// call in one kernel needs a __syncthreads() between them.
template <int kThreads>
__device__ __forceinline__ float block_sum(float v) {
  constexpr int kWarps = kThreads / kWarpSize;
  ERNIE_SHARED(float, partial, [kWarps]);
  v = warp_sum(v);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  v = 0.f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) v += partial[i];
  return v;
}

}  // namespace ernie::cuda
