// Leaf functions of the wint8 family. Raw pointers, no threads; packed weights are those of
// ops/wint8.h.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"
#include "cpu/quantized_block.isa.h"

namespace ernie::cpu {

ERNIE_DECLARE_ISA(void wint8_f32(const QuantizedBlock&))   // x float, as gemm_f32_bf16
ERNIE_DECLARE_ISA(void wint8_bf16(const QuantizedBlock&))  // x bfloat16, as gemm_bf16_bf16

// k columns of one panel, beginning at a multiple of 4, as a panel of bfloat16 pairs; k even.
ERNIE_DECLARE_ISA(void wint8_expand(const uint8_t* w, int64_t k, bf16* out))

// acc[r, 16p + i] (+)= fma over g of x_scale[r, g] * float(sum_k in g of x[r, k] * w[p, k, i]),
// where g is 64 columns. All tiers give the same bits.
struct Wint8ActivationBlock {
  const int8_t* x;       // [rows, 64 * row_groups]; zeros beyond the last column
  const float* x_scale;  // [rows, row_groups]
  const int32_t* x_sum;  // [rows, row_groups], of x
  int64_t row_groups;    // groups of a whole row
  int64_t rows;
  const int8_t* w;
  int64_t w_stride;
  int64_t panels;
  const int8_t* w_end = nullptr;  // as QuantizedBlock's
  int64_t quads;                  // of k, in groups of 16 but for the last
  float* acc;
  int64_t acc_stride;
  bool accumulate;  // start from what acc holds, else from zero
};

ERNIE_DECLARE_ISA(void wint8_int8(const Wint8ActivationBlock&))

// acc[i] *= scale[i]
ERNIE_DECLARE_ISA(void scale_columns(float* acc, const float* scale, int64_t n))

}  // namespace ernie::cpu
