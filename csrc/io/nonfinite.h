// One pass over stored weights that finds NaN and infinity by their exponent bits.
#pragma once

#include <cstdint>

namespace ernie::io {

struct NonFinite {
  int64_t count = 0;
  int64_t first = -1;  // flat index of the first one; -1 when there is none
};

// `words`: `count` float32 values as their bits.
NonFinite find_nonfinite_f32(const uint32_t* words, int64_t count);
// `exponent_mask`: 0x7f80 for bfloat16, 0x7c00 for float16.
NonFinite find_nonfinite_16(const uint16_t* words, int64_t count, uint16_t exponent_mask);

}  // namespace ernie::io
