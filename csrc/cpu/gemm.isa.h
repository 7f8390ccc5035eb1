// Leaf functions of the gemm family, which attention uses too. Raw pointers, no threads. Defined in
// gemm.isa.cpp; the packed layouts are those of ops/gemm.h.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"
#include "ops/activation_core.h"

namespace ernie::cpu {

constexpr int64_t kPanelRows = 16;  // outputs per panel
constexpr int64_t kMaxPanels = 8;   // panels a leaf call is best given

// acc[r, 16p + i] (+)= sum_k x[r, k] * w[p, k, i], k ascending in one chain of fused multiply-adds
// per element, whatever rows and panels are: a row's result does not depend on the others.
struct GemmBlock {
  const void* x;     // [rows, k]
  int64_t x_stride;  // elements between rows
  int64_t rows;
  const void* w;       // panels
  int64_t w_stride;    // elements between panels
  int64_t panels;      // >= 1
  int64_t k;           // even where w is bfloat16
  float* acc;          // [rows, 16 * panels]
  int64_t acc_stride;  // elements between rows
  bool accumulate;     // start from what acc holds, else from zero
  // What will be read from memory after this block, brought near meanwhile: the panels' first
  // bytes, their distance, and for how many columns of w there are 64 bytes of each. Null: nothing.
  const void* next = nullptr;
  int64_t next_stride = 0;
  int64_t columns_per_line = 0;
};

ERNIE_DECLARE_ISA(void gemm_f32_f32(const GemmBlock&))   // x float, w float
ERNIE_DECLARE_ISA(void gemm_f32_bf16(const GemmBlock&))  // x float, w bfloat16 pairs
// x bfloat16, w bfloat16 pairs, by the dot product instruction: two products per step. Fast only in
// tier avx512_bf16 (and there only on some machines: core/isa.h); plain loops elsewhere.
ERNIE_DECLARE_ISA(void gemm_bf16_bf16(const GemmBlock&))

// out[i] = round(acc[i] + bias[i]); bias may be null.
ERNIE_DECLARE_ISA(void finish_row(const float* acc, const float* bias, float* out, int64_t n))
ERNIE_DECLARE_ISA(void finish_row(const float* acc, const float* bias, bf16* out, int64_t n))
ERNIE_DECLARE_ISA(void finish_row(const float* acc, const bf16* bias, float* out, int64_t n))
ERNIE_DECLARE_ISA(void finish_row(const float* acc, const bf16* bias, bf16* out, int64_t n))

// out[i] = round(activation(acc[i] + bias[i])); bias may be null, the activation is one.
ERNIE_DECLARE_ISA(void finish_activated(const float* acc, const float* bias, float* out, int64_t n,
                                        Activation activation))
ERNIE_DECLARE_ISA(void finish_activated(const float* acc, const float* bias, bf16* out, int64_t n,
                                        Activation activation))
ERNIE_DECLARE_ISA(void finish_activated(const float* acc, const bf16* bias, float* out, int64_t n,
                                        Activation activation))
ERNIE_DECLARE_ISA(void finish_activated(const float* acc, const bf16* bias, bf16* out, int64_t n,
                                        Activation activation))

// out[i] = round(silu(round(gate[i] + gate_bias[i])) * round(up[i] + up_bias[i])); both biases or
// none may be null.
ERNIE_DECLARE_ISA(void finish_silu_and_mul(const float* gate, const float* up,
                                           const float* gate_bias, const float* up_bias, float* out,
                                           int64_t n))
ERNIE_DECLARE_ISA(void finish_silu_and_mul(const float* gate, const float* up,
                                           const bf16* gate_bias, const bf16* up_bias, float* out,
                                           int64_t n))
ERNIE_DECLARE_ISA(void finish_silu_and_mul(const float* gate, const float* up,
                                           const float* gate_bias, const float* up_bias, bf16* out,
                                           int64_t n))
ERNIE_DECLARE_ISA(void finish_silu_and_mul(const float* gate, const float* up,
                                           const bf16* gate_bias, const bf16* up_bias, bf16* out,
                                           int64_t n))

// out[i] = float(x[i]), i < n, and zeros up to padded_n.
ERNIE_DECLARE_ISA(void widen_row(const bf16* x, float* out, int64_t n, int64_t padded_n))
ERNIE_DECLARE_ISA(void widen_row(const float* x, float* out, int64_t n, int64_t padded_n))

}  // namespace ernie::cpu
