// Leaf functions of the norm family: one row, raw pointers, no threads. Defined in norm.isa.cpp.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// y = rms_norm(x) * w. x and y may be the same row.
ERNIE_DECLARE_ISA(void rms_norm_row(const float* x, const float* w, float* y, int64_t n, float eps))
ERNIE_DECLARE_ISA(void rms_norm_row(const bf16* x, const bf16* w, bf16* y, int64_t n, float eps))

// y = layer_norm(x) * w + b. x and y may be the same row.
ERNIE_DECLARE_ISA(void layer_norm_row(const float* x, const float* w, const float* b, float* y,
                                      int64_t n, float eps))
ERNIE_DECLARE_ISA(void layer_norm_row(const bf16* x, const bf16* w, const bf16* b, bf16* y,
                                      int64_t n, float eps))

// residual += x.
ERNIE_DECLARE_ISA(void add_row(const float* x, float* residual, int64_t n))
ERNIE_DECLARE_ISA(void add_row(const bf16* x, bf16* residual, int64_t n))

}  // namespace ernie::cpu
