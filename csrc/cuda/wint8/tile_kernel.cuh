// The kernel for many tokens, bfloat16 x.
#pragma once

#include "cuda/common.cuh"
#include "cuda/gemm/pipeline.cuh"
#include "cuda/gemm/work.cuh"
#include "cuda/wint8/fragment.cuh"

namespace ernie::cuda {

// Brings step `k` of kTile rows of x and of the weight into one stage. The weight's rows of 64
// bytes cover all banks by themselves.
template <class Weight, int kTile, bool kAligned>
__device__ __forceinline__ void load_stage(uint4* stage, const GemmOperands& p, int token0,
                                           int feature0, int k) {
  constexpr int kThreads = 2 * kTile, kXChunks = 4 * Weight::kLoadK / 8;
#pragma unroll
  for (int i = 0; i < kTile * kXChunks / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    const int row = at / kXChunks, chunk = at % kXChunks;
    const bool exists = token0 + row < p.m;
    const bf16* source = static_cast<const bf16*>(p.x) + (exists ? (token0 + row) * p.x_stride : 0);
    copy_chunk<kAligned>(stage + place_of<kXChunks>(row, chunk), source, k + 8 * chunk,
                         exists ? p.k : 0);
  }
  uint4* weights = stage + kTile * kXChunks;
#pragma unroll
  for (int i = 0; i < kTile * 4 / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    const int row = feature0 + at / 4, from = k + Weight::kLoadK * (at % 4);
    const bool exists = row < p.n;
    const char* source =
        static_cast<const char*>(p.weight) + (exists ? row * Weight::row_bytes(p.k) : 0);
    if constexpr (kAligned) {
      const bool inside = exists && from < p.k;
      cp_async_16(weights + at, source + (inside ? Weight::row_bytes(from) : 0), inside ? 16 : 0);
    } else {
      weights[at] = Weight::template load<false>(source, from, exists ? p.k : 0);
    }
  }
}

__device__ __forceinline__ void store(float* to, float sum) { *to = sum; }
__device__ __forceinline__ void store(bf16* to, float sum) {
  to->bits = static_cast<uint16_t>(cvt_rn_bf16x2_f32(0.f, sum));
}

// What store_output does, for all sums of a lane: its tokens are token0 + 8 t and the next, its
// features feature0 + 8 f. One output at a time took a sixth of the kernel's instructions.
template <class Weight, class T, int kTokenTiles, int kPairs>
__device__ __forceinline__ void store_sums(const GemmOperands& p,
                                           const float (&total)[kTokenTiles][kPairs][4], int token0,
                                           int feature0) {
  FeatureTerms terms[2 * kPairs] = {};
#pragma unroll
  for (int f = 0; f < 2 * kPairs; ++f) {
    if (feature0 + 8 * f < p.n) terms[f] = widened_terms_of<Weight>(p, feature0 + 8 * f);
  }
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = token0 + 8 * t + i;
      if (token >= p.m) continue;
      T* row = static_cast<T*>(p.out) + token * p.out_stride + feature0;
#pragma unroll
      for (int f = 0; f < 2 * kPairs; ++f) {
        if (feature0 + 8 * f >= p.n) continue;
        const float sum = total[t][f / 2][f % 2 * 2 + i] * terms[f].scale;
        store(row + 8 * f, p.bias != nullptr ? sum + terms[f].bias : sum);
      }
    }
}

// wint8_linear and wint4_linear for many tokens and any shape. A block owns kTile tokens by kTile
// features, a warp kTile / 2 by 32 of them; steps of K come through shared memory, the weight's as
// bytes, kStages deep, and each warp widens the weights that it multiplies. The sums of a slice of
// K end in `total` before the next slice begins, which gives the bits of the narrow kernel.
//
// Bound by the tensor cores when aligned: of a 128 x 128 block and 64 k, a warp widens 20 words of
// int8 for 16 products of 2048. Unaligned rows are read an element at a time.
template <class Weight, int kTile, int kStages, bool kAligned>
__global__ void __launch_bounds__(2 * kTile)
    wint_tile_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokenTiles = kTile / 2 / 8, kPairs = 2;
  constexpr int kWides = Weight::kLoadK / 16, kXChunks = 8 * kWides, kStepK = 64 * kWides;
  constexpr int kStageChunks = kTile * (kXChunks + 4);
  ERNIE_DYNAMIC_SHARED(uint4, stages);

  const TilePlace<kTile> at(token_blocks);
  const int steps = (p.k + kStepK - 1) / kStepK;
  SlicedSums<kTokenTiles, kPairs> sums(slice_length / kStepK);
  for_each_stage<kStages, kStageChunks>(
      stages, steps,
      [&](uint4* stage, int step) {
        load_stage<Weight, kTile, kAligned>(stage, p, at.token0, at.feature0, step * kStepK);
      },
      [&](const uint4* x, int step) {
        const uint4* weights = x + kTile * kXChunks;
        uint4 bytes[2 * kPairs];
#pragma unroll
        for (int f = 0; f < 2 * kPairs; ++f)
          bytes[f] = weights[(at.warp_feature + 8 * f + at.quad) * 4 + at.chunk];
#pragma unroll
        for (int i = 0; i < kWides; ++i) {
          Wide wide[2 * kPairs];
#pragma unroll
          for (int f = 0; f < 2 * kPairs; ++f) wide[f] = widen<Weight>(bytes[f], i);
#pragma unroll
          for (int t = 0; t < kTokenTiles; ++t) {
            const int row = at.warp_token + 8 * t + at.quad, first = 2 * (kWides * at.chunk + i);
            const uint4 low = x[place_of<kXChunks>(row, first)];
            const uint4 high = x[place_of<kXChunks>(row, first + 1)];
#pragma unroll
            for (int f = 0; f < kPairs; ++f)
              multiply_wide(sums.acc[t][f], wide[2 * f], wide[2 * f + 1], low, high);
          }
        }
        sums.end_step(step + 1 == steps);
      });

  const int to_token = at.token0 + at.warp_token + 2 * at.chunk;
  const int to_feature = at.feature0 + at.warp_feature + at.quad;
  if (p.out_is_f32)
    store_sums<Weight, float>(p, sums.total, to_token, to_feature);
  else
    store_sums<Weight, bf16>(p, sums.total, to_token, to_feature);
}

// ------------------------------------------------------------------------------------- launcher

template <class Weight, int kTile>
auto wint_tile_kernel_of(const GemmConfig& c) {
  constexpr int kStages = wint_plan::tile_stages(Weight::kDtype, kTile);
  return c.aligned ? wint_tile_kernel<Weight, kTile, kStages, true>
                   : wint_tile_kernel<Weight, kTile, kStages, false>;
}

template <class Weight>
void launch_wint_tile(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  launch(c.tile_tokens == 128 ? wint_tile_kernel_of<Weight, 128>(c)
                              : wint_tile_kernel_of<Weight, 64>(c),
         launch_config(c, stream), p, static_cast<int>(c.slice), static_cast<int>(c.token_blocks));
}

}  // namespace ernie::cuda
