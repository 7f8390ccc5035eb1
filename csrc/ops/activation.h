// Activations: the gate of a SwiGLU MLP, and those of the vision tower.
//
//   silu_and_mul   out[t, i] = silu(x[t, i]) * x[t, I + i],   I = intermediate_size
//   gelu           out[t, i] = x[t, i] * (1 + erf(x[t, i] / sqrt(2))) / 2
//   quick_gelu     out[t, i] = x[t, i] * sigmoid(1.702 x[t, i])
//
// with sigmoid(v) = 1 / (1 + exp(-v)) and silu(v) = v sigmoid(v). Computed in float32 and rounded
// once to the dtype of x; far below zero the result keeps a relative precision of some 5e-6
// (the exponent is rounded before exp), down to denormals.
// Infinities and NaN give what the formula gives: infinity for +inf, NaN for -inf (0 times
// infinity) and for NaN.
// Source: Shazeer 2020, arXiv:2002.05202 (gate columns first, then up, as in ERNIE-4.5);
// Hendrycks & Gimpel 2016, arXiv:1606.08415.
#pragma once

#include "core/tensor.h"

namespace ernie {

struct SiluAndMulArgs {
  TensorView out;  // [num_tokens, intermediate_size], dtype of x, last stride 1
  TensorView x;    // [num_tokens, 2 * intermediate_size], float32 or bfloat16, last stride 1
};

// gelu and quick_gelu.
struct ActivationArgs {
  TensorView out;  // [num_tokens, size], dtype of x, last stride 1; may be x itself
  TensorView x;    // [num_tokens, size], float32 or bfloat16, last stride 1
};

void silu_and_mul(const SiluAndMulArgs&, const Stream&);
void gelu(const ActivationArgs&, const Stream&);
void quick_gelu(const ActivationArgs&, const Stream&);

namespace cpu {
void silu_and_mul(const SiluAndMulArgs&, const Stream&);
void gelu(const ActivationArgs&, const Stream&);
void quick_gelu(const ActivationArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void silu_and_mul(const SiluAndMulArgs&, const Stream&);
void gelu(const ActivationArgs&, const Stream&);
void quick_gelu(const ActivationArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
