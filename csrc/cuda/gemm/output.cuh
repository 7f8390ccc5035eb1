// What the kernels that store element by element share: rows of the weight, and the way from sums
// to outputs: scale, bias, activation, one rounding.
#pragma once

#include "core/bf16.h"
#include "cuda/activation_functions.cuh"
#include "cuda/gemm/kernels.h"
#include "cuda/nibbles.cuh"

namespace ernie::cuda {

template <class W>
__device__ __forceinline__ const W* row_of_weight(const GemmOperands& p, int feature) {
  return static_cast<const W*>(p.weight) + feature * elements_of<W>(p.k);
}

// Calls f<W>() for elements W of a weight of this dtype.
template <class F>
void with_weight(DType weight, const F& f) {
  switch (weight) {
    case DType::kBF16:
      return f.template operator()<bf16>();
    case DType::kI8:
      return f.template operator()<int8_t>();
    case DType::kU8:
      return f.template operator()<Nibbles>();
    default:
      return f.template operator()<float>();
  }
}

// What the sums of one feature are multiplied by, for a quantized weight, and what is added. A
// kernel that would wait for them at its end fetches them before it begins.
struct FeatureTerms {
  float scale, bias;
};

template <class W>
__device__ __forceinline__ FeatureTerms terms_of(const GemmOperands& p, int feature) {
  FeatureTerms terms = {1.f, 0.f};
  if constexpr (kIsQuantized<W>) {
    terms.scale = p.scale[feature];
    if (p.bias != nullptr)
      terms.bias = p.bias_is_f32 ? static_cast<const float*>(p.bias)[feature]
                                 : to_float(static_cast<const ernie::bf16*>(p.bias)[feature]);
  } else {
    if (p.bias != nullptr) terms.bias = to_float(static_cast<const W*>(p.bias)[feature]);
  }
  return terms;
}

// Scales, adds the bias.
template <class W>
__device__ __forceinline__ float output_of(const GemmOperands& p, float sum,
                                           const FeatureTerms& terms) {
  if constexpr (kIsQuantized<W>) sum *= terms.scale;
  return p.bias != nullptr ? sum + terms.bias : sum;
}

// Rounds once, stores.
__device__ __forceinline__ void store_rounded(const GemmOperands& p, int token, int feature,
                                              float output) {
  const int64_t at = token * p.out_stride + feature;
  if (p.out_is_f32)
    static_cast<float*>(p.out)[at] = output;
  else
    static_cast<ernie::bf16*>(p.out)[at] = to_bf16(output);
}

// Both, without an activation.
template <class W>
__device__ __forceinline__ void store_output(const GemmOperands& p, int token, int feature,
                                             float sum, const FeatureTerms& terms) {
  store_rounded(p, token, feature, output_of<W>(p, sum, terms));
}

template <class W>
__device__ __forceinline__ void store_output(const GemmOperands& p, int token, int feature,
                                             float sum) {
  store_output<W>(p, token, feature, sum, terms_of<W>(p, feature));
}

// Both, with it.
template <class W>
__device__ __forceinline__ void store_activated(const GemmOperands& p, int token, int feature,
                                                float sum) {
  const float output = output_of<W>(p, sum, terms_of<W>(p, feature));
  if constexpr (kIsQuantized<W>)
    store_rounded(p, token, feature, output);
  else
    store_rounded(p, token, feature, activate(p.activation, output));
}

// Stores a block's tile of kTile x kTile outputs. for_each_sum(f) calls f(token, feature, sum), in
// unrolled loops, for the sums of the calling thread. Each of the many calls would have a copy of
// an activation: then the sums go through `tile`, shared memory of any contents, to a loop.
template <class W, int kTile, class F>
__device__ __forceinline__ void store_tile(const GemmOperands& p, int token0, int feature0,
                                           float* tile, const F& for_each_sum) {
  if (kIsQuantized<W> || p.activation == Activation::kNone) {
    for_each_sum([&](int token, int feature, float sum) {
      if (token0 + token < p.m && feature0 + feature < p.n)
        store_output<W>(p, token0 + token, feature0 + feature, sum);
    });
    return;
  }
  __syncthreads();  // all have read what was there
  for_each_sum([&](int token, int feature, float sum) { tile[token * kTile + feature] = sum; });
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < kTile * kTile; i += blockDim.x) {
    const int token = token0 + i / kTile, feature = feature0 + i % kTile;
    if (token < p.m && feature < p.n) store_activated<W>(p, token, feature, tile[i]);
  }
}

}  // namespace ernie::cuda
