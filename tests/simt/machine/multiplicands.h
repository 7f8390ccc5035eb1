// What tensor-core instructions multiply: element i of a register, the lowest bits first, and what
// sums are kept in. Products and sums are rounded one by one, in the order of k; a GPU rounds
// elsewhere (PTX leaves that open), so that only exact cases agree bit by bit.
#pragma once

#include <bit>
#include <cstdint>

#include "machine/number_formats.h"

namespace simt {

struct Bf16 {
  using Sum = float;
  static constexpr int kPerRegister = 2;
  static float element(uint32_t word, int i) {
    return std::bit_cast<float>(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};
struct F16 {
  using Sum = float;
  static constexpr int kPerRegister = 2;
  static float element(uint32_t word, int i) {
    return float_from_f16(static_cast<uint16_t>(word >> 16 * i));
  }
};
struct E4m3 {
  using Sum = float;
  static constexpr int kPerRegister = 4;
  static float element(uint32_t word, int i) {
    return float_from_e4m3(static_cast<uint8_t>(word >> 8 * i));
  }
};
struct S8 {
  using Sum = int32_t;
  static constexpr int kPerRegister = 4;
  static int32_t element(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }
};
struct U8 {
  using Sum = int32_t;
  static constexpr int kPerRegister = 4;
  static int32_t element(uint32_t word, int i) { return static_cast<uint8_t>(word >> 8 * i); }
};

inline float multiply_add(float a, float b, float c) { return c + a * b; }
inline int32_t multiply_add(int32_t a, int32_t b, int32_t c) {  // wraps
  return static_cast<int32_t>(static_cast<uint32_t>(c) + static_cast<uint32_t>(a * b));
}

}  // namespace simt
