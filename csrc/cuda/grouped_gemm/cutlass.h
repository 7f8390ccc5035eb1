// CUTLASS's grouped products: what they read, and the functions that launch them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ernie::cuda {

// wgmma code runs on 9.0 alone: a build for other GPUs only has none. tests/simt has functions of
// its own behind these names.
#if ERNIE_CUDA_SM90A || defined(ERNIE_SIMT)
constexpr bool kHasGroupedSm90 = true;
#else
constexpr bool kHasGroupedSm90 = false;
#endif

// An entry an expert, in device memory: out = x weight^T of m rows, n columns and depth k, rows of
// bfloat16 that start at 16 bytes.
struct GroupedArrays {
  int32_t (*sizes)[3];  // m, n, k
  const void** x;
  const void** weight;
  void** out;
  int64_t* x_stride;  // elements
  int64_t* weight_stride;
  int64_t* out_stride;
  int num_experts;
};

// CUTLASS; rows x columns of the tile. `scratch` is of grouped_plan::scratch_bytes.
void launch_grouped_sm80_128x128(const GroupedArrays&, int sm_count, cudaStream_t);
void launch_grouped_sm90_128x128(const GroupedArrays&, int sm_count, void* scratch, cudaStream_t);

}  // namespace ernie::cuda
