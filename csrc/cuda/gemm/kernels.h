// The kernels of this folder, each behind a function that launches it as a plan says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common.cuh"
#include "cuda/gemm/config.h"
#include "ops/activation_core.h"

namespace ernie::cuda {

// What every kernel gets, by value. m, n, k are num_tokens, out_features and in_features; the
// weight is [n, k] and contiguous; strides are in elements; a null bias is none. Its dtype is the
// weight's, unless that is quantized: such a weight has a scale of each feature, a bias of either
// dtype and no activation.
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
  Activation activation = Activation::kNone;
};

// Of a call of linear, wint8_linear or wint4_linear.
template <class Args>
GemmOperands operands_of(const Args& a) {
  GemmOperands p = {.x = a.x.data,
                    .weight = a.weight.data,
                    .bias = a.bias ? a.bias->data : nullptr,
                    .out = a.out.data,
                    .m = static_cast<int>(a.x.size(0)),
                    .n = static_cast<int>(a.out.size(1)),
                    .k = static_cast<int>(a.x.size(1)),
                    .x_stride = a.x.step(0),
                    .out_stride = a.out.step(0),
                    .bias_is_f32 = a.bias && a.bias->dtype == DType::kF32,
                    .out_is_f32 = a.out.dtype == DType::kF32};
  if constexpr (requires { a.scale; }) p.scale = a.scale.template ptr<float>();
  if constexpr (requires { a.activation; }) p.activation = a.activation;
  return p;
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

// CUTLASS; tokens x features of the tile, dtype of out; with an activation or without.
void launch_sm80_128x128_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_128x256_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_64x128_bf16(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm80_128x128_bf16_activated(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_64x128_bf16_activated(const GemmOperands&, int sm_count, cudaStream_t);
void launch_sm90_64x128_f32(const GemmOperands&, int sm_count, cudaStream_t);

}  // namespace ernie::cuda
