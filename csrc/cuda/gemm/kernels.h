// The kernels of this folder, each behind a function that launches it as a plan says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/bf16.h"
#include "core/host_device.h"
#include "cuda/common.cuh"
#include "cuda/gemm/config.h"
#include "cuda/nibbles.cuh"

namespace ernie::cuda {

// What every kernel gets, by value. m, n, k are num_tokens, out_features and in_features; the
// weight is [n, k] and contiguous; strides are in elements; a null bias is none. Its dtype is the
// weight's, unless that is quantized: such a weight has a scale of each feature, and a bias of
// either dtype.
struct GemmOperands {
  const void* x;
  const void* weight;
  const float* scale = nullptr;
  const void* bias;
  void* out;
  int m, n, k;
  int64_t x_stride, out_stride;
  bool bias_is_f32;
  bool out_is_f32;
};

template <class W>
ERNIE_HOST_DEVICE const W* row_of_weight(const GemmOperands& p, int feature) {
  return static_cast<const W*>(p.weight) + feature * elements_of<W>(p.k);
}

// What the sums of one feature are multiplied by, for a quantized weight, and what is added. A
// kernel that would wait for them at its end fetches them before it begins.
struct FeatureTerms {
  float scale, bias;
};

template <class W>
ERNIE_HOST_DEVICE FeatureTerms terms_of(const GemmOperands& p, int feature) {
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

// Scales, adds the bias, rounds once, stores.
template <class W>
ERNIE_HOST_DEVICE void store_output(const GemmOperands& p, int token, int feature, float sum,
                                    const FeatureTerms& terms) {
  if constexpr (kIsQuantized<W>) sum *= terms.scale;
  if (p.bias != nullptr) sum += terms.bias;
  const int64_t at = token * p.out_stride + feature;
  if (p.out_is_f32)
    static_cast<float*>(p.out)[at] = sum;
  else
    static_cast<ernie::bf16*>(p.out)[at] = to_bf16(sum);
}

template <class W>
ERNIE_HOST_DEVICE void store_output(const GemmOperands& p, int token, int feature, float sum) {
  store_output<W>(p, token, feature, sum, terms_of<W>(p, feature));
}

inline LaunchConfig launch_config(const GemmConfig& c, cudaStream_t stream) {
  return {.grid = static_cast<unsigned>(c.blocks()),
          .block = static_cast<unsigned>(c.threads),
          .smem = static_cast<size_t>(c.shared_bytes),
          .stream = stream};
}

void launch_narrow_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);
void launch_narrow_f32(const GemmOperands&, DType weight, const GemmConfig&, cudaStream_t);
void launch_tile_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);
void launch_tile_f32(const GemmOperands&, DType weight, const GemmConfig&, cudaStream_t);

// CUTLASS; tokens x features of the tile, dtype of out.
void launch_sm80_128x128_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_128x256_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_64x128_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_64x128_f32(const GemmOperands&, int sm_count, cudaStream_t);

}  // namespace ernie::cuda
