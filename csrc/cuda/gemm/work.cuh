// Who owns what: the part of a product that a block, a warp and a lane take, and sums that several
// have parts of.
#pragma once

#include "cuda/common.cuh"
#include "cuda/gemm/config.h"

namespace ernie::cuda {

// The first token and feature of a block. `token_blocks` are side by side: they share weights, so
// that all but one find them in L2.
template <int kTokens, int kFeatures>
struct BlockPlace {
  int token0, feature0;

  __device__ __forceinline__ explicit BlockPlace(int token_blocks)
      : token0(static_cast<int>(blockIdx.x % token_blocks) * kTokens),
        feature0(static_cast<int>(blockIdx.x / token_blocks) * kFeatures) {}
};

// Of the kernels for many tokens: a warp owns kTile / 2 tokens by 32 features of its block, from
// (warp_token, warp_feature) on. The four lanes of a quad hold the four chunks of a step of a row.
template <int kTile>
struct TilePlace : BlockPlace<kTile, kTile> {
  int quad, chunk, warp_token, warp_feature;

  __device__ __forceinline__ explicit TilePlace(int token_blocks)
      : BlockPlace<kTile, kTile>(token_blocks),
        quad(threadIdx.x % kWarpSize / 4),
        chunk(threadIdx.x % 4),
        warp_token(threadIdx.x / kWarpSize % 2 * (kTile / 2)),
        warp_feature(threadIdx.x / kWarpSize / 2 * 32) {}
};

// Of the kernels for few tokens: warp `slice` sums k from `begin` to `end`, and the block adds what
// its warps have, in order.
struct SlicePlace {
  int quad, chunk, slice, begin, end;

  __device__ __forceinline__ SlicePlace(int k, int slice_length)
      : quad(threadIdx.x % kWarpSize / 4),
        chunk(threadIdx.x % 4),
        slice(threadIdx.x / kWarpSize),
        begin(slice * slice_length),
        end(begin + slice_length < k ? begin + slice_length : k) {}
};

// Sum `i` of the block, of which a slice has kSums in shared memory.
template <int kSums>
__device__ __forceinline__ float sum_of_slices(const float* partial, int i) {
  float sum = 0.f;
#pragma unroll
  for (int s = 0; s < kGemmSlices; ++s) sum += partial[s * kSums + i];
  return sum;
}

// What the four lanes of a quad have, in each of them.
__device__ __forceinline__ float sum_of_quad(float sum) {
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum;
}

}  // namespace ernie::cuda
