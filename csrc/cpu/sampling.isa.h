// Leaf functions of the sampling family: stretches of one row of logits, raw pointers, no threads.
// Defined in sampling.isa.cpp.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace ernie::cpu {

// The largest of n logits; NaN if any is NaN; -inf if there is none.
ERNIE_DECLARE_ISA(float largest_of(const float* logits, int64_t n))

// The first index of `value`, which is there.
ERNIE_DECLARE_ISA(int64_t find_first(const float* logits, int64_t n, float value))

// Writes the indices of all logits >= bound in ascending order; returns how many.
ERNIE_DECLARE_ISA(int64_t gather_at_least(const float* logits, int64_t n, float bound,
                                          int32_t* indices))

// weights[i] = exp((logits[i] - largest) / temperature), in [0, 1]; -inf gives 0. Returns their
// float32 sum; `weights` may be null. The logits hold no NaN and nothing above `largest`.
ERNIE_DECLARE_ISA(float weigh(const float* logits, int64_t n, float largest, float temperature,
                              float* weights))

}  // namespace ernie::cpu
