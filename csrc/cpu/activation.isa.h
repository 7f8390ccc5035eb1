// Leaf functions of the activation family: one row, raw pointers, no threads. Defined in
// activation.isa.cpp. Each element is the same wherever a row is cut in two.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// y = silu(gate) * up.
ERNIE_DECLARE_ISA(void silu_and_mul_row(const float* gate, const float* up, float* y, int64_t n))
ERNIE_DECLARE_ISA(void silu_and_mul_row(const bf16* gate, const bf16* up, bf16* y, int64_t n))

// x and y may be the same row.
ERNIE_DECLARE_ISA(void gelu_row(const float* x, float* y, int64_t n))
ERNIE_DECLARE_ISA(void gelu_row(const bf16* x, bf16* y, int64_t n))
ERNIE_DECLARE_ISA(void quick_gelu_row(const float* x, float* y, int64_t n))
ERNIE_DECLARE_ISA(void quick_gelu_row(const bf16* x, bf16* y, int64_t n))

}  // namespace ernie::cpu
