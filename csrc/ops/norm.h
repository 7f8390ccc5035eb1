// Root-mean-square normalisation over the last dimension.
//
//   y[t, h] = weight[h] * round(x[t, h] / sqrt(mean_h(x[t, h]^2) + eps))
//
// The mean and the quotient are taken in float32; round() goes to the dtype of x BEFORE the weight
// multiplies, and the product is rounded once more, as ERNIE-4.5's reference implementation does.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
#pragma once

#include "core/tensor.h"

namespace ernie {

struct RmsNormArgs {
  TensorView out;     // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView x;       // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;  // [hidden_size], dtype of x, contiguous
  float eps;          // > 0
};

// The residual stream and the norm behind it in one pass:
//
//   residual = round(residual + x);  out = rms_norm(residual, weight)
struct AddRmsNormArgs {
  TensorView out;       // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView residual;  // [num_tokens, hidden_size], dtype of x, read and written, last stride 1
  TensorView x;         // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;    // [hidden_size], dtype of x, contiguous
  float eps;            // > 0
};

void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);

namespace cpu {
void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
