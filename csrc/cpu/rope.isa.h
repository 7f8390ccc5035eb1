// Leaf functions of the rope family: the heads of one token, raw pointers, no threads. Defined in
// rope.isa.cpp.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// Rotates heads of `head_dim` elements, `head_step` elements apart. `table` holds cos, sin of each
// pair (2i, 2i + 1). Every tier gives the same bits.
ERNIE_DECLARE_ISA(void rotate_heads(float* x, const float* table, int64_t num_heads,
                                    int64_t head_step, int64_t head_dim))
ERNIE_DECLARE_ISA(void rotate_heads(bf16* x, const float* table, int64_t num_heads,
                                    int64_t head_step, int64_t head_dim))

// The same of the pairs (i, head_dim / 2 + i); `table` holds all cosines, then all sines.
ERNIE_DECLARE_ISA(void rotate_halves(float* x, const float* table, int64_t num_heads,
                                     int64_t head_step, int64_t head_dim))
ERNIE_DECLARE_ISA(void rotate_halves(bf16* x, const float* table, int64_t num_heads,
                                     int64_t head_step, int64_t head_dim))

}  // namespace ernie::cpu
