// The k order that both sliced kernels share. A chunk is 8 consecutive k of one row, 16 bytes; the
// four lanes of a quad hold the four chunks of a step of 32 k. The product sums over k in any order
// as long as both operands agree, so a chunk's words serve two m16n8k16 products as they lie: words
// 0 and 1 the first, 2 and 3 the second. No shuffle and no ldmatrix is needed, and a warp reads
// whole sectors of eight rows at once.
#pragma once

#include <cuda_runtime.h>

#include "core/bf16.h"
#include "cuda/ptx.cuh"

namespace ernie::cuda {

constexpr int kStepK = 32;

// Elements k .. k + 7 of `row`; those from `end` on are zero. An aligned row starts at a multiple
// of 16 bytes and `end` at a multiple of 8. kStream marks what is read once.
template <bool kAligned, bool kStream = false>
__device__ __forceinline__ uint4 load_chunk(const bf16* row, int k, int end) {
  if constexpr (kAligned) {
    if (k >= end) return make_uint4(0, 0, 0, 0);
    if constexpr (kStream) return ld_global_nc_l1_no_allocate_16(row + k);
    return *reinterpret_cast<const uint4*>(row + k);
  } else {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = k + 2 * i < end ? row[k + 2 * i].bits : 0;
      const uint32_t high = k + 2 * i + 1 < end ? row[k + 2 * i + 1].bits : 0;
      word[i] = low | high << 16;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// Brings the same chunk to shared memory: asynchronously, as part of the open group, or at once.
template <bool kAligned>
__device__ __forceinline__ void copy_chunk(uint4* to, const bf16* row, int k, int end) {
  if constexpr (kAligned) {
    const bool inside = k < end;
    cp_async_16(to, row + (inside ? k : 0), inside ? 16 : 0);
  } else {
    *to = load_chunk<false>(row, k, end);
  }
}

// acc += x * weight^T over one step: 16 tokens (chunks of token g and g + 8) by 8 features (chunk
// of feature g), where g is the lane's quad.
__device__ __forceinline__ void multiply_step(float (&acc)[4], const uint4& x_low,
                                              const uint4& x_high, const uint4& weight) {
  mma_m16n8k16_bf16(acc, {x_low.x, x_high.x, x_low.y, x_high.y}, weight.x, weight.y);
  mma_m16n8k16_bf16(acc, {x_low.z, x_high.z, x_low.w, x_high.w}, weight.z, weight.w);
}

}  // namespace ernie::cuda
