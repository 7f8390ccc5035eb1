// Linear layer: out[t, n] = round(activation(sum_k x[t, k] * weight[n, k] + bias[n])).
//
// The activation is none, or one of ops/activation.h, of the float32 sum. The sum is taken in
// float32 and rounded once. On the CPU k ascends, with one accumulator per output (the tier with
// bfloat16 dot products adds two products at a time); a row's result does not depend on the other
// rows, on how they are split or on the number of threads; products with a bfloat16 weight may
// treat denormal inputs and sums as zero. On CUDA the order depends on the shape, number of rows
// included, unless core/batch_invariant.h is set (cuda/gemm/config.h tells the orders).
//
// The weight is [out_features, in_features], or its packed form: a panel of 16 output rows after
// the other, so that one vector register holds the same k of 16 outputs.
//
//   bfloat16: [ceil(N / 16), ceil(K / 2), 16, 2]   element [p, j, r, i] = weight[16p + r, 2j + i]
//   float32:  [ceil(N / 16), K, 16]                element [p, k, r]    = weight[16p + r, k]
//
// Rows and columns beyond N and K are zero.
#pragma once

#include <optional>

#include "core/tensor.h"
#include "ops/activation_core.h"

namespace ernie {

struct LinearArgs {
  TensorView out;     // [num_tokens, out_features], dtype of x, or float32; last stride 1
  TensorView x;       // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;  // [out_features, in_features], float32 or bfloat16, contiguous; or packed
                      // (CPU). A float32 weight wants a float32 x.
  std::optional<TensorView> bias;  // [out_features], dtype of weight, contiguous
  Activation activation = Activation::kNone;
};

// The first half of a SwiGLU MLP: gate and up projection, the weight's first and second half of
// rows, and what ops/activation.h makes of them. With s = linear(x, weight, bias),
//
//   out[t, i] = round(silu(s[t, i]) * s[t, I + i]),   I = intermediate_size
//
// bit for bit as by the two ops; the CPU keeps s to itself.
struct LinearSiluAndMulArgs {
  TensorView out;                  // [num_tokens, intermediate_size], dtype of x, last stride 1
  TensorView x;                    // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;               // of out_features = 2 intermediate_size, as in LinearArgs
  std::optional<TensorView> bias;  // [2 intermediate_size], dtype of weight, contiguous
  // CUDA: room for s, [num_tokens, 2 intermediate_size], dtype of x, last stride 1.
  std::optional<TensorView> gate_up;
};

struct LinearPackArgs {
  TensorView out;     // packed, as above, contiguous
  TensorView weight;  // [out_features, in_features], float32 or bfloat16, last stride 1
};

void linear(const LinearArgs&, const Stream&);
void linear_silu_and_mul(const LinearSiluAndMulArgs&, const Stream&);
void linear_pack(const LinearPackArgs&, const Stream&);

namespace cpu {
void linear(const LinearArgs&, const Stream&);
void linear_silu_and_mul(const LinearSiluAndMulArgs&, const Stream&);
void linear_pack(const LinearPackArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void linear(const LinearArgs&, const Stream&);
void linear_silu_and_mul(const LinearSiluAndMulArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
