// Linear layer with an int8 weight and one scale per output channel ("WINT8"):
//
//   out[t, n] = round(scale[n] * sum_k x[t, k] * weight[n, k] + bias[n])
//
// The sum is taken in float32 and rounded once. On the CPU it is, bit for bit, the sum that
// ops/gemm.h takes with the weight as bfloat16 (which holds every int8 exactly): k in that order,
// and a row's result does not depend on the other rows or on the number of threads. On CUDA the
// order depends on the shape, number of rows included, unless core/batch_invariant.h is set.
// Then one multiplication by the scale, rounded to float32, and one addition of the bias.
//
// With int8_activations (CPU only) x is rounded first, for every row and 64 columns alike:
//
//   x_scale[t, g] = max_k abs(x[t, k]) / 127,  64 g <= k < 64 (g + 1)
//   x_int8[t, k]  = round_to_nearest_even(x[t, k] * (127 / max))      zeros where 127 / max = inf
//   sum           = fma over ascending g of x_scale[t, g] * float(sum_k in g of x_int8 * weight)
//
// the inner sums exact in int32, at every number of tokens. NaN or infinity in a group makes that
// row's outputs NaN.
//
// Packed, a weight is a panel of 16 output rows after the other, four k of each together:
//
//   int8: [ceil(N / 16), ceil(K / 4), 16, 4]   element [p, j, r, i] = weight[16p + r, 4j + i]
//
// Rows and columns beyond N and K are zero.
//
// Source: PaddlePaddle's weight_quantize, algorithm "weight_only_int8": per channel
// scale = dtype(max_k abs(w) / 127), weight_int8 = clamp(round_half_away(w / max * 127), -127,
// 127).
#pragma once

#include <optional>

#include "core/tensor.h"

namespace ernie {

struct Wint8LinearArgs {
  TensorView out;     // [num_tokens, out_features], dtype of x, or float32; last stride 1
  TensorView x;       // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;  // int8 [out_features, in_features], contiguous; or packed (CPU)
  TensorView scale;   // [out_features], float32, contiguous
  std::optional<TensorView> bias;  // [out_features], float32 or bfloat16, contiguous
  bool int8_activations;
};

// As LinearSiluAndMulArgs of ops/gemm.h: gate rows first, then up rows.
struct Wint8LinearSiluAndMulArgs {
  TensorView out;                  // [num_tokens, intermediate_size], dtype of x, last stride 1
  TensorView x;                    // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;               // of out_features = 2 intermediate_size, as above
  TensorView scale;                // [2 intermediate_size], float32, contiguous
  std::optional<TensorView> bias;  // [2 intermediate_size], float32 or bfloat16, contiguous
  // CUDA: room for the projections, [num_tokens, 2 intermediate_size], dtype of x, last stride 1.
  std::optional<TensorView> gate_up;
  bool int8_activations;
};

struct Wint8QuantizeArgs {
  TensorView out;     // int8 [out_features, in_features], or packed as above; contiguous
  TensorView scale;   // [out_features], float32: the value rounded to the dtype of weight
  TensorView weight;  // [out_features, in_features], float32 or bfloat16, last stride 1
};

struct Wint8PackArgs {
  TensorView out;     // packed, as above, contiguous
  TensorView weight;  // int8 [out_features, in_features], last stride 1
};

void wint8_linear(const Wint8LinearArgs&, const Stream&);
void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs&, const Stream&);
void wint8_quantize(const Wint8QuantizeArgs&, const Stream&);
void wint8_pack(const Wint8PackArgs&, const Stream&);

namespace cpu {
void wint8_linear(const Wint8LinearArgs&, const Stream&);
void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs&, const Stream&);
void wint8_quantize(const Wint8QuantizeArgs&, const Stream&);
void wint8_pack(const Wint8PackArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void wint8_linear(const Wint8LinearArgs&, const Stream&);
void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs&, const Stream&);
void wint8_quantize(const Wint8QuantizeArgs&, const Stream&);  // not packed
}  // namespace cuda

}  // namespace ernie
