// Weights of 4 bits as tensors hold them: two in a byte.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/host_device.h"

namespace ernie::cuda {

// The even one is the low half; both in two's complement.
struct Nibbles {
  uint8_t bits;
};

// Types of weights that have a scale for each row.
template <class T>
constexpr bool kIsQuantized = std::is_same_v<T, int8_t> || std::is_same_v<T, Nibbles>;

// Elements that hold `columns` weights of a row, which begins with one of its own.
template <class T>
ERNIE_HOST_DEVICE constexpr int64_t elements_of(int64_t columns) {
  return std::is_same_v<T, Nibbles> ? (columns + 1) / 2 : columns;
}

__device__ __forceinline__ float nibble_value(uint32_t pair, int i) {
  return static_cast<float>(static_cast<int>((pair >> 4 * i & 15) ^ 8) - 8);
}

// Elements k .. k + 7 of a row of nibbles as float; those from `end` on are zero, but for the last
// byte's second, which the caller takes no notice of. An aligned row lets them be read at once; k
// is even.
template <bool kAligned>
__device__ __forceinline__ void load_nibble_values(float (&to)[8], const Nibbles* row, int k,
                                                   int end) {
  const Nibbles* at = row + k / 2;
  uint32_t word = 0;
  if constexpr (kAligned) {
    if (k < end) word = *reinterpret_cast<const uint32_t*>(at);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (k + 2 * i < end) word |= uint32_t{at[i].bits} << 8 * i;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = nibble_value(word >> i / 2 * 8, i % 2);
}

}  // namespace ernie::cuda
