// Instructions on registers of one thread: bytes, bits, small dot products, conversions.
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/bf16.h"
#include "cuda/ptx/arithmetic.cuh"
#include "machine/number_formats.h"

namespace simt::ptx {

uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t d = 0;
  for (int bit = 0; bit < 32; ++bit) {
    const uint32_t row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1);
    d |= (static_cast<uint32_t>(table) >> row & 1) << bit;
  }
  return d;
}

}  // namespace simt::ptx

namespace ernie::cuda {
namespace {

uint32_t byte_of(uint32_t word, int i) { return word >> 8 * i & 0xff; }

}  // namespace

uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 0xf;
    uint32_t byte = byte_of((pick & 4) != 0 ? b : a, static_cast<int>(pick & 3));
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    d |= byte << 8 * i;
  }
  return d;
}

int32_t dp4a_s32(uint32_t a, uint32_t b, int32_t c) {
  auto sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i)
    sum += static_cast<uint32_t>(static_cast<int8_t>(byte_of(a, i)) *
                                 static_cast<int8_t>(byte_of(b, i)));
  return static_cast<int32_t>(sum);
}
int32_t dp4a_u32_s32(uint32_t a, uint32_t b, int32_t c) {
  auto sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i)
    sum += byte_of(a, i) * static_cast<uint32_t>(static_cast<int8_t>(byte_of(b, i)));
  return static_cast<int32_t>(sum);
}
uint32_t dp2a_lo_u32(uint32_t a, uint32_t b, uint32_t c) {
  return c + (a & 0xffff) * byte_of(b, 0) + (a >> 16) * byte_of(b, 1);
}
uint32_t dp2a_hi_u32(uint32_t a, uint32_t b, uint32_t c) {
  return c + (a & 0xffff) * byte_of(b, 2) + (a >> 16) * byte_of(b, 3);
}

uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  const auto convert = [](float f) -> uint32_t {
    return std::isnan(f) ? 0x7fffu : ernie::to_bf16(f).bits;
  };
  return convert(high) << 16 | convert(low);
}
uint32_t cvt_rn_f16x2_f32(float high, float low) {
  return uint32_t{simt::f16_from_float(high)} << 16 | simt::f16_from_float(low);
}
float cvt_f32_f16(uint16_t half) {
  const float f = simt::float_from_f16(half);
  return std::isnan(f) ? std::bit_cast<float>(0x7fffffffu) : f;
}
uint16_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  return static_cast<uint16_t>(simt::e4m3_from_float(high) << 8 | simt::e4m3_from_float(low));
}
uint32_t cvt_rn_f16x2_e4m3x2(uint16_t pair) {
  const float high = simt::float_from_e4m3(static_cast<uint8_t>(pair >> 8));
  const float low = simt::float_from_e4m3(static_cast<uint8_t>(pair & 0xff));
  return cvt_rn_f16x2_f32(high, low);  // exact
}

uint32_t fma_rn_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [](uint32_t x, uint32_t y, uint32_t z) -> uint32_t {
    const auto real = [](uint32_t bits) -> double { return std::bit_cast<float>(bits << 16); };
    return simt::bf16_from_sum(real(x) * real(y), real(z));  // the product is exact
  };
  return one(a >> 16, b >> 16, c >> 16) << 16 | one(a & 0xffff, b & 0xffff, c & 0xffff);
}

float ex2_approx(float x) {
  const auto flush = [](float f) { return std::fpclassify(f) == FP_SUBNORMAL ? f * 0.f : f; };
  return flush(std::exp2(flush(x)));
}

}  // namespace ernie::cuda
