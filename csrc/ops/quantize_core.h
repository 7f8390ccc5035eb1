// How a weight is rounded to few bits, the same on both backends bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace ernie {

// A magnitude as bits: they are ordered as integers are, infinity and NaN last.
ERNIE_HOST_DEVICE static inline uint32_t magnitude_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffffu;
}

inline constexpr uint32_t kInfinityBits = 0x7f800000u;

// Of a weight whose row's largest magnitude is max_abs, which becomes `largest`: the nearest
// integer, half away from zero, by a truncation that the compiler has vectors for.
ERNIE_HOST_DEVICE static inline int32_t rounded_weight(float weight, float max_abs, float largest) {
  const float value = weight / max_abs * largest;
  const int32_t whole = static_cast<int32_t>(value);
  const float rest = value - static_cast<float>(whole);
  return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

}  // namespace ernie
