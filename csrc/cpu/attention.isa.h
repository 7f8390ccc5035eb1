// Leaf functions of the attention family. Raw pointers, no threads. Defined in attention.isa.cpp;
// the products are those of gemm.isa.h, whose panels these functions fill.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// A key tile as weights of q * k^T: out[d, j] = keys[j, d] for one panel of 16 keys, zero for
// j >= count. The rows lie one after the other.
ERNIE_DECLARE_ISA(void pack_keys(const float* keys, int64_t count, int64_t head_dim, float* out))
ERNIE_DECLARE_ISA(void pack_keys(const bf16* keys, int64_t count, int64_t head_dim, float* out))

// The same for products of bfloat16 pairs: out[d / 2, j, d % 2] = keys[j, d], bits unchanged.
ERNIE_DECLARE_ISA(void pack_keys(const bf16* keys, int64_t count, int64_t head_dim, bf16* out))

// A value row as row `j` of the weights of p * v: out[panel, j, i] = value[16 panel + i], zero
// beyond head_dim; panels are `panel_stride` apart.
ERNIE_DECLARE_ISA(void pack_value(const float* value, int64_t head_dim, float* out,
                                  int64_t panel_stride))
ERNIE_DECLARE_ISA(void pack_value(const bf16* value, int64_t head_dim, float* out,
                                  int64_t panel_stride))

// One row of scores becomes probabilities relative to the running maximum: for j < visible
// s[j] = exp(scale * s[j] - new maximum), zero for visible <= j < count. *sum and the row of
// outputs acc[n] are rescaled to the new maximum, and the probabilities added to *sum.
ERNIE_DECLARE_ISA(void softmax_row(float* s, int64_t visible, int64_t count, float scale,
                                   float* maximum, float* sum, float* acc, int64_t n))

// Adds one split's result (maximum, sum, acc) to the total's.
ERNIE_DECLARE_ISA(void merge_row(float* total_maximum, float* total_sum, float* total,
                                 float maximum, float sum, const float* acc, int64_t n))

// out[i] = round(acc[i] / sum).
ERNIE_DECLARE_ISA(void divide_row(const float* acc, float sum, float* out, int64_t n))
ERNIE_DECLARE_ISA(void divide_row(const float* acc, float sum, bf16* out, int64_t n))

}  // namespace ernie::cpu
