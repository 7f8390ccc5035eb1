// Leaf functions of the activation family: one row, raw pointers, no threads. Defined in
// activation.isa.cpp.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// y = silu(gate) * up. Each element is the same wherever a row is cut in two.
ERNIE_DECLARE_ISA(void silu_and_mul_row(const float* gate, const float* up, float* y, int64_t n))
ERNIE_DECLARE_ISA(void silu_and_mul_row(const bf16* gate, const bf16* up, bf16* y, int64_t n))

}  // namespace ernie::cpu
