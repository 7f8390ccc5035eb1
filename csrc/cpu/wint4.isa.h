// Leaf functions of the wint4 family. Raw pointers, no threads; packed weights are those of
// ops/wint4.h.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"
#include "cpu/quantized_block.isa.h"

namespace ernie::cpu {

ERNIE_DECLARE_ISA(void wint4_f32(const QuantizedBlock&))   // x float, as gemm_f32_bf16
ERNIE_DECLARE_ISA(void wint4_bf16(const QuantizedBlock&))  // x bfloat16, as gemm_bf16_bf16

// k columns of one panel, beginning at a multiple of 8, as a panel of bfloat16 pairs; k even.
ERNIE_DECLARE_ISA(void wint4_expand(const uint8_t* w, int64_t k, bf16* out))

}  // namespace ernie::cpu
