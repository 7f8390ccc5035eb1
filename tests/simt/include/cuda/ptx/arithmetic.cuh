// machine/ptx_arithmetic.cpp
#pragma once

#include <cstdint>

namespace simt::ptx {

uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int table);

}  // namespace simt::ptx

namespace ernie::cuda {

uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector);

template <int kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(kTable >= 0 && kTable < 256, "the table has a bit for each of 8 cases");
  return simt::ptx::lop3(a, b, c, kTable);
}

int32_t dp4a_s32(uint32_t a, uint32_t b, int32_t c);
int32_t dp4a_u32_s32(uint32_t a, uint32_t b, int32_t c);
uint32_t dp2a_lo_u32(uint32_t a, uint32_t b, uint32_t c);
uint32_t dp2a_hi_u32(uint32_t a, uint32_t b, uint32_t c);

uint32_t cvt_rn_bf16x2_f32(float high, float low);
uint32_t cvt_rn_f16x2_f32(float high, float low);
float cvt_f32_f16(uint16_t half);
uint16_t cvt_rn_satfinite_e4m3x2_f32(float high, float low);
uint32_t cvt_rn_f16x2_e4m3x2(uint16_t pair);

uint32_t fma_rn_bf16x2(uint32_t a, uint32_t b, uint32_t c);

float ex2_approx(float x);

}  // namespace ernie::cuda
