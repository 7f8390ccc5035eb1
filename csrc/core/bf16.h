// bfloat16 storage type. Arithmetic is always done in float. Shared by host and device code.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace ernie {

struct bf16 {
  uint16_t bits;
};

ERNIE_HOST_DEVICE static inline float to_float(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
ERNIE_HOST_DEVICE static inline float to_float(float x) { return x; }

// Round to nearest, ties to even; NaN stays NaN (quieted).
ERNIE_HOST_DEVICE static inline bf16 to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x0040u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace ernie
