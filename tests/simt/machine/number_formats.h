// Number formats of tensor cores that the host's compiler has no types for, by their definitions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace simt {

// float16: 1 sign bit, 5 of exponent, 10 of mantissa, IEEE 754.
inline float float_from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float f;
  if (exponent == 31)
    f = mantissa == 0 ? INFINITY : NAN;
  else
    f = std::ldexp(static_cast<float>(exponent == 0 ? mantissa : mantissa + 1024),
                   (exponent == 0 ? 1 : exponent) - 25);
  return bits & 0x8000 ? -f : f;
}

// a + b as bfloat16, rounded once to the nearest, ties to even. NaN becomes 0x7fff. The sum as a
// double, with its last bit set where it is not exact, is on the same side of every tie.
inline uint16_t bf16_from_sum(double a, double b) {
  double sum = a + b;
  if (std::isnan(sum)) return 0x7fff;
  const uint32_t sign = std::signbit(sum) ? 0x8000 : 0;
  if (std::isinf(sum)) return static_cast<uint16_t>(sign | 0x7f80);
  const double part = sum - a, lost = (a - (sum - part)) + (b - part);
  if (lost != 0) {
    if ((lost < 0) != std::signbit(sum)) sum = std::nextafter(sum, 0.0);  // towards zero first
    sum = std::bit_cast<double>(std::bit_cast<uint64_t>(sum) | 1);
  }
  constexpr int kMantissa = 7, kLowest = -126, kHighest = 127;
  const double magnitude = std::fabs(sum);
  int exponent = kLowest;
  if (magnitude >= std::ldexp(1.0, kLowest)) exponent = std::ilogb(magnitude);
  if (exponent > kHighest) return static_cast<uint16_t>(sign | 0x7f80);
  const double units = std::nearbyint(std::ldexp(magnitude, kMantissa - exponent));
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent - kLowest) << kMantissa) +
                                       static_cast<uint32_t>(units)));
}

// float8 e4m3: no infinity; all bits set but the sign is NaN.
inline float float_from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float f;
  if ((bits & 0x7f) == 0x7f)
    f = NAN;
  else
    f = std::ldexp(static_cast<float>(exponent == 0 ? mantissa : mantissa + 8),
                   (exponent == 0 ? 1 : exponent) - 10);
  return bits & 0x80 ? -f : f;
}

// |f| in units of the format's last place at |f|, to the nearest, ties to even; positive formats of
// `mantissa` bits are consecutive integers in the order of their values, so that a carry into the
// exponent comes out by itself.
inline uint32_t round_to_format(float magnitude, int mantissa, int lowest_exponent) {
  int exponent = lowest_exponent;
  if (magnitude >= std::ldexp(1.f, lowest_exponent)) exponent = std::ilogb(magnitude);
  const float units = std::nearbyint(std::ldexp(magnitude, mantissa - exponent));
  return (static_cast<uint32_t>(exponent - lowest_exponent) << mantissa) +
         static_cast<uint32_t>(units);
}

// To the nearest, ties to even. NaN becomes 0x7fff, what is too large infinity.
inline uint16_t f16_from_float(float f) {
  if (std::isnan(f)) return 0x7fff;
  const uint32_t sign = std::signbit(f) ? 0x8000 : 0;
  if (std::fabs(f) >= 65520.f) return static_cast<uint16_t>(sign | 0x7c00);
  return static_cast<uint16_t>(sign | round_to_format(std::fabs(f), 10, -14));
}

// To the nearest, ties to even. NaN becomes 0x7f, what is too large 448.
inline uint8_t e4m3_from_float(float f) {
  if (std::isnan(f)) return 0x7f;
  const uint32_t sign = std::signbit(f) ? 0x80 : 0;
  if (std::fabs(f) >= 448.f) return static_cast<uint8_t>(sign | 0x7e);
  return static_cast<uint8_t>(sign | round_to_format(std::fabs(f), 3, -6));
}

}  // namespace simt
