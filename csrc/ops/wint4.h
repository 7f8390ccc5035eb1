// Linear layer with a 4-bit weight and one scale per output channel ("WINT4"):
//
//   out[t, n] = round(scale[n] * sum_k x[t, k] * weight[n, k] + bias[n]),   -8 <= weight <= 7
//
// The sum is taken in float32 and rounded once. On the CPU it is, bit for bit, the sum that
// ops/gemm.h takes with the weight as bfloat16 (which holds every value exactly): k in that order,
// and a row's result does not depend on the other rows or on the number of threads. On CUDA the
// order depends on the shape, number of rows included, unless core/batch_invariant.h is set.
// Then one multiplication by the scale, rounded to float32, and one addition of the bias.
//
// Plain, two weights share a byte: uint8 [out_features, ceil(K / 2)], the low nibble holds the even
// k, the high nibble the odd one, in two's complement. The nibble beyond an odd K is zero.
//
// Packed, a weight is a panel of 16 output rows after the other, eight k of each together:
//
//   uint8: [ceil(N / 16), ceil(K / 8), 16, 4]
//
// Element [p, j, r] is 32 bits (the lowest byte first): the nibble of bits 4i ... 4i + 3 is k = 8j
// + 2i of row 16p + r, that of bits 16 + 4i ... is k = 8j + 2i + 1, so that one shift brings two
// neighbours to the bottom of the two 16-bit halves. Rows and columns beyond N and K are zero.
//
// Source: PaddlePaddle's weight_quantize, algorithm "weight_only_int4", by channel:
// scale = dtype(max_k abs(w) / 7), weight = clamp(round_half_away(w / max * 7), -7, 7).
#pragma once

#include <optional>

#include "core/tensor.h"

namespace ernie {

struct Wint4LinearArgs {
  TensorView out;     // [num_tokens, out_features], dtype of x, or float32; last stride 1
  TensorView x;       // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;  // uint8 [out_features, ceil(in_features / 2)], contiguous; or packed (CPU)
  TensorView scale;   // [out_features], float32, contiguous
  std::optional<TensorView> bias;  // [out_features], float32 or bfloat16, contiguous
};

// As LinearSiluAndMulArgs of ops/gemm.h: gate rows first, then up rows.
struct Wint4LinearSiluAndMulArgs {
  TensorView out;                  // [num_tokens, intermediate_size], dtype of x, last stride 1
  TensorView x;                    // [num_tokens, in_features], float32 or bfloat16, last stride 1
  TensorView weight;               // of out_features = 2 intermediate_size, as above
  TensorView scale;                // [2 intermediate_size], float32, contiguous
  std::optional<TensorView> bias;  // [2 intermediate_size], float32 or bfloat16, contiguous
  // CUDA: room for the projections, [num_tokens, 2 intermediate_size], dtype of x, last stride 1.
  std::optional<TensorView> gate_up;
};

struct Wint4QuantizeArgs {
  TensorView out;     // uint8, plain or packed as above; contiguous
  TensorView scale;   // [out_features], float32: the value rounded to the dtype of weight
  TensorView weight;  // [out_features, in_features], float32 or bfloat16, last stride 1
};

struct Wint4PackArgs {
  TensorView out;     // packed, as above, contiguous
  TensorView weight;  // uint8, plain, last stride 1
};

void wint4_linear(const Wint4LinearArgs&, const Stream&);
void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs&, const Stream&);
void wint4_quantize(const Wint4QuantizeArgs&, const Stream&);
void wint4_pack(const Wint4PackArgs&, const Stream&);

namespace cpu {
void wint4_linear(const Wint4LinearArgs&, const Stream&);
void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs&, const Stream&);
void wint4_quantize(const Wint4QuantizeArgs&, const Stream&);
void wint4_pack(const Wint4PackArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void wint4_linear(const Wint4LinearArgs&, const Stream&);
void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs&, const Stream&);
void wint4_quantize(const Wint4QuantizeArgs&, const Stream&);  // not packed
}  // namespace cuda

}  // namespace ernie
