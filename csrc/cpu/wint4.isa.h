// Leaf functions of the wint4 family. Raw pointers, no threads; packed weights are those of
// ops/wint4.h.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// acc[r, 16p + i] = sum_k x[r, k] * w[p, k, i], bit for bit as GemmBlock's (gemm.isa.h) with w as
// bfloat16. Expands w again for every 6 rows: for few rows.
struct Wint4Block {
  const void* x;     // [rows, k], float or bfloat16
  int64_t x_stride;  // elements between rows
  int64_t rows;
  const uint8_t* w;  // panels
  int64_t w_stride;  // bytes between panels
  int64_t panels;    // >= 1
  // Behind the last panel of a weight that streams from memory: panels up to it are prefetched.
  const uint8_t* w_end = nullptr;
  int64_t k;   // even
  float* acc;  // [rows, 16 * panels]
  int64_t acc_stride;
};

ERNIE_DECLARE_ISA(void wint4_f32(const Wint4Block&))   // x float, as gemm_f32_bf16
ERNIE_DECLARE_ISA(void wint4_bf16(const Wint4Block&))  // x bfloat16, as gemm_bf16_bf16

// k columns of one panel, beginning at a multiple of 8, as a panel of bfloat16 pairs; k even.
ERNIE_DECLARE_ISA(void wint4_expand(const uint8_t* w, int64_t k, bf16* out))

}  // namespace ernie::cpu
