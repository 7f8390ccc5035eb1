#include "cuda/common.cuh"
#include "cuda/gemm/pipeline.cuh"
#include "cuda/wint8/fragment.cuh"
#include "cuda/wint8/kernels.h"

namespace ernie::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kXChunks = kByteStepK / 8, kWeightChunks = kByteStepK / 16;  // of a row in one step

// Where a chunk of x lies in its row of 128 bytes. The eight lanes that shared memory serves at
// once read every other chunk of two neighbouring rows: swapped in one of them, they cover all
// banks.
__device__ __forceinline__ int place_of(int row, int chunk) {
  return row * kXChunks + (chunk ^ (row & 1));
}

// Brings step `k` of kTile rows of x and of the weight into one stage. Every thread moves four
// chunks of x and two of the weight, whose rows of 64 bytes cover all banks by themselves.
template <int kTile, bool kAligned>
__device__ __forceinline__ void load_stage(uint4* stage, const GemmOperands& p, int token0,
                                           int feature0, int k) {
  constexpr int kThreads = 2 * kTile;
#pragma unroll
  for (int i = 0; i < kTile * kXChunks / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    const int row = at / kXChunks, chunk = at % kXChunks;
    const bool exists = token0 + row < p.m;
    const bf16* source = static_cast<const bf16*>(p.x) + (exists ? (token0 + row) * p.x_stride : 0);
    copy_chunk<kAligned>(stage + place_of(row, chunk), source, k + 8 * chunk, exists ? p.k : 0);
  }
  uint4* weights = stage + kTile * kXChunks;
#pragma unroll
  for (int i = 0; i < kTile * kWeightChunks / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    const int row = feature0 + at / kWeightChunks, from = k + 16 * (at % kWeightChunks);
    const bool exists = row < p.n;
    const int8_t* source = static_cast<const int8_t*>(p.weight) + (exists ? int64_t{row} * p.k : 0);
    if constexpr (kAligned) {
      const bool inside = exists && from < p.k;
      cp_async_16(weights + at, source + (inside ? from : 0), inside ? 16 : 0);
    } else {
      weights[at] = load_bytes<false>(source, from, exists ? p.k : 0);
    }
  }
}

__device__ __forceinline__ void store(float* to, float sum) { *to = sum; }
__device__ __forceinline__ void store(bf16* to, float sum) {
  to->bits = static_cast<uint16_t>(cvt_rn_bf16x2_f32(0.f, sum));
}

// What store_output does, for all sums of a lane: its tokens are token0 + 8 t and the next, its
// features feature0 + 8 f. One output at a time took a sixth of the kernel's instructions.
template <class T, int kTokenTiles, int kPairs>
__device__ __forceinline__ void store_sums(const GemmOperands& p,
                                           const float (&total)[kTokenTiles][kPairs][4], int token0,
                                           int feature0) {
  FeatureTerms terms[2 * kPairs] = {};
#pragma unroll
  for (int f = 0; f < 2 * kPairs; ++f) {
    if (feature0 + 8 * f < p.n) terms[f] = widened_terms_of(p, feature0 + 8 * f);
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

// wint8_linear for many tokens and any shape. A block owns kTile tokens by kTile features, a warp
// kTile / 2 by 32 of them; tiles of 64 k come through shared memory, the weight's as bytes, four
// stages deep, and each warp widens the weights that it multiplies. The sums of a slice of K end in
// `total` before the next slice begins, which gives the bits of the narrow kernel.
//
// Bound by the tensor cores when aligned: of a 128 x 128 block, a warp widens 20 words for 16
// products of 2048. Unaligned rows are read an element at a time.
template <int kTile, bool kAligned>
__global__ void __launch_bounds__(2 * kTile)
    wint8_tile_bf16_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokenTiles = kTile / 2 / 8, kPairs = 2;
  constexpr int kStageChunks = kTile * (kXChunks + kWeightChunks);
  ERNIE_DYNAMIC_SHARED(uint4, stages);

  const int token0 = static_cast<int>(blockIdx.x % token_blocks) * kTile;
  const int feature0 = static_cast<int>(blockIdx.x / token_blocks) * kTile;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int quad = lane / 4, chunk = lane % 4;
  const int warp_token = warp % 2 * (kTile / 2), warp_feature = warp / 2 * 32;

  const int steps = (p.k + kByteStepK - 1) / kByteStepK;
  const int steps_per_slice = slice_length / kByteStepK;
  int left_in_slice = steps_per_slice;
  SlicedSums<kTokenTiles, kPairs> sums;
  for_each_stage<kStages, kStageChunks>(
      stages, steps,
      [&](uint4* stage, int step) {
        load_stage<kTile, kAligned>(stage, p, token0, feature0, step * kByteStepK);
      },
      [&](const uint4* x, int step) {
        const uint4* weights = x + kTile * kXChunks;
        WideBytes wide[2 * kPairs];
#pragma unroll
        for (int f = 0; f < 2 * kPairs; ++f)
          wide[f] = widen(weights[(warp_feature + 8 * f + quad) * kWeightChunks + chunk]);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          const int row = warp_token + 8 * t + quad;
          const uint4 low = x[place_of(row, 2 * chunk)], high = x[place_of(row, 2 * chunk + 1)];
#pragma unroll
          for (int f = 0; f < kPairs; ++f)
            multiply_step(sums.acc[t][f], wide[2 * f], wide[2 * f + 1], low, high);
        }
        if (--left_in_slice == 0 || step + 1 == steps) {
          left_in_slice = steps_per_slice;
          sums.end_slice();
        }
      });

  const int to_token = token0 + warp_token + 2 * chunk, to_feature = feature0 + warp_feature + quad;
  if (p.out_is_f32)
    store_sums<float>(p, sums.total, to_token, to_feature);
  else
    store_sums<bf16>(p, sums.total, to_token, to_feature);
}

}  // namespace

// ------------------------------------------------------------------------------------- launcher

void launch_wint8_tile_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel =
      c.tile_tokens == 128
          ? (c.aligned ? wint8_tile_bf16_kernel<128, true> : wint8_tile_bf16_kernel<128, false>)
          : (c.aligned ? wint8_tile_bf16_kernel<64, true> : wint8_tile_bf16_kernel<64, false>);
  launch(kernel, launch_config(c, stream), p, static_cast<int>(c.slice),
         static_cast<int>(c.token_blocks));
}

}  // namespace ernie::cuda
