// Leaf functions of the moe family: one row, raw pointers, no threads. Defined in moe.isa.cpp.
#pragma once

#include <cstdint>

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// p = softmax(logits), scores = p + bias. False, and nothing useful, where a logit or a bias is not
// finite.
ERNIE_DECLARE_ISA(bool moe_scores_row(const float* logits, const float* bias, int64_t n, float* p,
                                      float* scores))

// The sum of n values in the order that moe_core.h defines.
ERNIE_DECLARE_ISA(float moe_sum(const float* values, int64_t n))

// out = sum_j weights[j] * (x + rows[j] * x_stride), + shared where that is not null.
ERNIE_DECLARE_ISA(void moe_combine_row(const float* x, int64_t x_stride, const int32_t* rows,
                                       const float* weights, int64_t top_k, const float* shared,
                                       float* out, int64_t n))
ERNIE_DECLARE_ISA(void moe_combine_row(const bf16* x, int64_t x_stride, const int32_t* rows,
                                       const float* weights, int64_t top_k, const bf16* shared,
                                       bf16* out, int64_t n))

}  // namespace ernie::cpu
