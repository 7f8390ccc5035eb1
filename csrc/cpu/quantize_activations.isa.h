// Activations as int8, one scale for every row and 64 columns alike (ops/wint8.h has the formula).
// Every tier gives the same bits. Defined in quantize_activations.isa.cpp.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

constexpr int64_t kActivationGroup = 64;  // columns that share a scale

// One row of n columns: `quantized` gets whole groups, zeros beyond n; scale[g] and sum[g], the sum
// of the group's int8 values, one for each. A group with NaN or infinity: scale NaN, values zero.
ERNIE_DECLARE_ISA(void quantize_activations_row(const float* x, int64_t n, int8_t* quantized,
                                                float* scale, int32_t* sum))
ERNIE_DECLARE_ISA(void quantize_activations_row(const bf16* x, int64_t n, int8_t* quantized,
                                                float* scale, int32_t* sum))

}  // namespace ernie::cpu
