// The kernel for few tokens, bfloat16 x.
#pragma once

#include "cuda/common.cuh"
#include "cuda/gemm/work.cuh"
#include "cuda/wint8/fragment.cuh"

namespace ernie::cuda {

// Blocks that a multiprocessor is to hold. Loads of single elements of 4-bit weights take more
// registers.
constexpr int wint_narrow_blocks(int load_k, int token_tiles, bool aligned) {
  return token_tiles > (aligned || load_k == 16 ? 4 : 2) ? 1 : 2;
}

// wint8_linear and wint4_linear for few tokens. A block owns 8 * kTokenTiles tokens by 8 *
// kFeatureRows features; warp s sums slice s of K, and the block adds the eight slices in order.
// Fragments come straight from global memory, so nothing waits on a barrier while it streams.
//
// Bound by memory up to 16 tokens, by L1 above: reads every weight byte once, 16 bytes a lane, and
// x once a block, from L1 and L2. Where x is small it is loaded together with the weight, kSteps
// steps ahead of the products: as many as the registers of two blocks a multiprocessor hold.
template <class Weight, int kTokenTiles, int kFeatureRows, bool kAligned>
__global__ void __launch_bounds__(32 * kGemmSlices,
                                  wint_narrow_blocks(Weight::kLoadK, kTokenTiles, kAligned))
    wint_narrow_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokens = 8 * kTokenTiles, kFeatures = 8 * kFeatureRows;
  constexpr int kPairs = (kFeatureRows + 1) / 2;
  constexpr int kLoadK = Weight::kLoadK, kStepK = 4 * kLoadK, kWides = kLoadK / 16;
  constexpr int kSteps = !kAligned || kTokenTiles * kWides > 4 ? 1
                         : kFeatureRows == 1                   ? 8 / kWides
                                                               : 2;
  constexpr bool kXAhead = kTokenTiles * kWides <= 2;
  ERNIE_DYNAMIC_SHARED(float, partial);

  const auto [token0, feature0] = BlockPlace<kTokens, kFeatures>(token_blocks);
  const auto [quad, chunk, slice, begin, end] = SlicePlace(p.k, slice_length);
  // An `end` of 0 makes every chunk of a row that does not exist zero.
  const char* weight[kFeatureRows];
  int weight_end[kFeatureRows];
#pragma unroll
  for (int f = 0; f < kFeatureRows; ++f) {
    const int feature = feature0 + 8 * f + quad;
    weight[f] = static_cast<const char*>(p.weight) + feature * Weight::row_bytes(p.k);
    weight_end[f] = feature < p.n ? end : 0;
  }
  const int token = token0 + quad;
  const bf16* x_rows = static_cast<const bf16*>(p.x) + token * p.x_stride;
  const auto x_of = [&](int tile, int k) {
    return load_chunk<kAligned>(x_rows + 8 * tile * p.x_stride, k,
                                token + 8 * tile < p.m ? end : 0);
  };
  // Every output of a thread is of one feature.
  static_assert(32 * kGemmSlices % kFeatures == 0);
  const int to_feature = feature0 + static_cast<int>(threadIdx.x) % kFeatures;
  FeatureTerms terms = {};
  if (to_feature < p.n) terms = widened_terms_of<Weight>(p, to_feature);

  float acc[kTokenTiles][kPairs][4] = {};
  for (int k0 = begin; k0 < end; k0 += kSteps * kStepK) {
    const int first = k0 + kLoadK * chunk;
    uint4 bytes[kSteps][kFeatureRows];
    uint4 x[kSteps][kXAhead ? kTokenTiles : 1][2 * kWides];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = first + s * kStepK;
#pragma unroll
      for (int f = 0; f < kFeatureRows; ++f)
        bytes[s][f] = Weight::template load<kAligned>(weight[f], k, weight_end[f]);
      if constexpr (kXAhead) {
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
          for (int c = 0; c < 2 * kWides; ++c) x[s][t][c] = x_of(t, k + 8 * c);
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (k0 + s * kStepK >= end) break;
#pragma unroll
      for (int i = 0; i < kWides; ++i) {
        Wide wide[2 * kPairs] = {};
#pragma unroll
        for (int f = 0; f < kFeatureRows; ++f) wide[f] = widen<Weight>(bytes[s][f], i);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          const int k = first + s * kStepK + 16 * i;
          const uint4 low = kXAhead ? x[s][t][2 * i] : x_of(t, k);
          const uint4 high = kXAhead ? x[s][t][2 * i + 1] : x_of(t, k + 8);
#pragma unroll
          for (int f = 0; f < kPairs; ++f)
            multiply_wide(acc[t][f], wide[2 * f], wide[2 * f + 1], low, high);
        }
      }
    }
  }

  float* mine = partial + slice * kTokens * kFeatures;
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
    for (int f = 0; f < kFeatureRows; ++f)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        mine[(8 * t + 2 * chunk + i) * kFeatures + 8 * f + quad] = acc[t][f / 2][f % 2 * 2 + i];
  __syncthreads();

  for (int i = threadIdx.x; i < kTokens * kFeatures; i += 32 * kGemmSlices) {
    const int to_token = token0 + i / kFeatures;
    if (to_token >= p.m || to_feature >= p.n) continue;
    const float sum = sum_of_slices<kTokens * kFeatures>(partial, i);
    store_output<typename Weight::Element>(p, to_token, to_feature, sum, terms);
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class Weight, bool kAligned>
auto wint_narrow_kernel_of(const GemmConfig& c) {
  switch (c.tile_tokens) {
    case 8:
      return c.tile_features == 8 ? wint_narrow_kernel<Weight, 1, 1, kAligned>
                                  : wint_narrow_kernel<Weight, 1, 2, kAligned>;
    case 16:
      return wint_narrow_kernel<Weight, 2, 2, kAligned>;
    case 32:
      return wint_narrow_kernel<Weight, 4, 2, kAligned>;
    default:
      if constexpr (wint_plan::most_narrow_tokens(Weight::kDtype, kAligned) == 64)
        return wint_narrow_kernel<Weight, 8, 4, kAligned>;
      else
        return wint_narrow_kernel<Weight, 4, 2, kAligned>;
  }
}

template <class Weight>
void launch_wint_narrow(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  launch(
      c.aligned ? wint_narrow_kernel_of<Weight, true>(c) : wint_narrow_kernel_of<Weight, false>(c),
      launch_config(c, stream), p, static_cast<int>(c.slice), static_cast<int>(c.token_blocks));
}

}  // namespace ernie::cuda
