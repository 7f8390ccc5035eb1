// Leaf functions of the wint8 family. Raw pointers, no threads; packed weights are those of
// ops/wint8.h.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// acc[r, 16p + i] = sum_k x[r, k] * w[p, k, i], bit for bit as GemmBlock's (gemm.isa.h) with w as
// bfloat16. Expands w again for every 6 rows: for few rows.
struct Wint8Block {
  const void* x;     // [rows, k], float or bfloat16
  int64_t x_stride;  // elements between rows
  int64_t rows;
  const int8_t* w;   // panels
  int64_t w_stride;  // bytes between panels
  int64_t panels;    // >= 1
  // Behind the last panel of a weight that is read in order: panels up to it are prefetched.
  const int8_t* w_end = nullptr;
  int64_t k;   // even
  float* acc;  // [rows, 16 * panels]
  int64_t acc_stride;
};

ERNIE_DECLARE_ISA(void wint8_f32(const Wint8Block&))   // x float, as gemm_f32_bf16
ERNIE_DECLARE_ISA(void wint8_bf16(const Wint8Block&))  // x bfloat16, as gemm_bf16_bf16

// k columns of one panel, beginning at a multiple of 4, as a panel of bfloat16 pairs; k even.
ERNIE_DECLARE_ISA(void wint8_expand(const int8_t* w, int64_t k, bf16* out))

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
  const int8_t* w_end = nullptr;  // as Wint8Block's
  int64_t quads;                  // of k, in groups of 16 but for the last
  float* acc;
  int64_t acc_stride;
  bool accumulate;  // start from what acc holds, else from zero
};

ERNIE_DECLARE_ISA(void wint8_int8(const Wint8ActivationBlock&))

// acc[i] *= scale[i]
ERNIE_DECLARE_ISA(void scale_columns(float* acc, const float* scale, int64_t n))

}  // namespace ernie::cpu
