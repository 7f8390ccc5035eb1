// Normalisation over the last dimension, by the root mean square or by mean and variance.
//
//   rms_norm     y[t, h] = weight[h] * round(x[t, h] / sqrt(mean_h(x[t, h]^2) + eps))
//   layer_norm   y[t, h] = (x[t, h] - mean) / sqrt(mean_h((x[t, h] - mean)^2) + eps) * weight[h]
//                          + bias[h],   mean = mean_h(x[t, h])
//
// Computed in float32 and rounded to the dtype of x: rms_norm BEFORE the weight multiplies and once
// more after it, as ERNIE-4.5's reference implementation does; layer_norm once, at the end, its
// mean and its variance in two passes.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; Ba et al. 2016, arXiv:1607.06450.
#pragma once

#include "core/tensor.h"

namespace ernie {

struct RmsNormArgs {
  TensorView out;     // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView x;       // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;  // [hidden_size], dtype of x, contiguous
  float eps;          // finite, > 0
};

// The residual stream and the norm behind it in one pass:
//
//   residual = round(residual + x);  out = rms_norm(residual, weight)
struct AddRmsNormArgs {
  TensorView out;       // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView residual;  // [num_tokens, hidden_size], dtype of x, read and written, last stride 1
  TensorView x;         // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;    // [hidden_size], dtype of x, contiguous
  float eps;            // finite, > 0
};

struct LayerNormArgs {
  TensorView out;     // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView x;       // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;  // [hidden_size], dtype of x, contiguous
  TensorView bias;    // [hidden_size], dtype of x, contiguous
  float eps;          // finite, > 0
};

//   residual = round(residual + x);  out = layer_norm(residual, weight, bias)
struct AddLayerNormArgs {
  TensorView out;       // [num_tokens, hidden_size], dtype of x; may be x itself
  TensorView residual;  // [num_tokens, hidden_size], dtype of x, read and written, last stride 1
  TensorView x;         // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView weight;    // [hidden_size], dtype of x, contiguous
  TensorView bias;      // [hidden_size], dtype of x, contiguous
  float eps;            // finite, > 0
};

void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);
void layer_norm(const LayerNormArgs&, const Stream&);
void add_layer_norm(const AddLayerNormArgs&, const Stream&);

namespace cpu {
void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);
void layer_norm(const LayerNormArgs&, const Stream&);
void add_layer_norm(const AddLayerNormArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void rms_norm(const RmsNormArgs&, const Stream&);
void add_rms_norm(const AddRmsNormArgs&, const Stream&);
void layer_norm(const LayerNormArgs&, const Stream&);
void add_layer_norm(const AddLayerNormArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
