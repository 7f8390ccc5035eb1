// machine/ptx_matrix.cpp (ldmatrix, stmatrix) and machine/ptx_mma.cpp
#pragma once

#include <cstdint>

#include "simt_qualifiers.h"

namespace simt::ptx {

struct Words4 {
  uint32_t word[4];
};

// The first `count` matrices; the words after them are zero.
Words4 ldmatrix(const void* shared_row, int count, bool transposed);
void stmatrix_x4(void* shared_row, Words4 matrix, bool transposed);

template <class Sum>
struct Accumulators {
  Sum value[4];
};
template <class Sum>
struct MmaOperands {
  Sum c[4];
  uint32_t a[4], b[2];
};
using MmaFloats = MmaOperands<float>;
using MmaIntegers = MmaOperands<int32_t>;
Accumulators<float> mma_m16n8k16_bf16(MmaFloats operands);
Accumulators<float> mma_m16n8k16_f16(MmaFloats operands);
Accumulators<float> mma_m16n8k32_e4m3(MmaFloats operands);
Accumulators<int32_t> mma_m16n8k32_s8(MmaIntegers operands);
Accumulators<int32_t> mma_m16n8k32_u8_s8(MmaIntegers operands);
Accumulators<int32_t> mma_m16n8k32_s8_u8(MmaIntegers operands);

}  // namespace simt::ptx

namespace ernie::cuda {

#define SIMT_LDMATRIX(name, count, transposed)                                           \
  __forceinline__ void name(uint32_t (&matrix)[count], const void* shared_row) {         \
    const simt::ptx::Words4 loaded = simt::ptx::ldmatrix(shared_row, count, transposed); \
    for (int i = 0; i < count; ++i) matrix[i] = loaded.word[i];                          \
  }
SIMT_LDMATRIX(ldmatrix_x1, 1, false)
SIMT_LDMATRIX(ldmatrix_x1_trans, 1, true)
SIMT_LDMATRIX(ldmatrix_x2, 2, false)
SIMT_LDMATRIX(ldmatrix_x2_trans, 2, true)
SIMT_LDMATRIX(ldmatrix_x4, 4, false)
SIMT_LDMATRIX(ldmatrix_x4_trans, 4, true)
#undef SIMT_LDMATRIX

__forceinline__ void stmatrix_x4(void* shared_row, const uint32_t (&matrix)[4]) {
  simt::ptx::stmatrix_x4(shared_row, {{matrix[0], matrix[1], matrix[2], matrix[3]}}, false);
}
__forceinline__ void stmatrix_x4_trans(void* shared_row, const uint32_t (&matrix)[4]) {
  simt::ptx::stmatrix_x4(shared_row, {{matrix[0], matrix[1], matrix[2], matrix[3]}}, true);
}

#define SIMT_MMA(name, Sum)                                                                 \
  __forceinline__ void name(Sum(&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    const simt::ptx::Accumulators<Sum> r =                                                  \
        simt::ptx::name({{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}});    \
    for (int i = 0; i < 4; ++i) d[i] = r.value[i];                                          \
  }
SIMT_MMA(mma_m16n8k16_bf16, float)
SIMT_MMA(mma_m16n8k16_f16, float)
SIMT_MMA(mma_m16n8k32_e4m3, float)
SIMT_MMA(mma_m16n8k32_s8, int32_t)
SIMT_MMA(mma_m16n8k32_u8_s8, int32_t)
SIMT_MMA(mma_m16n8k32_s8_u8, int32_t)
#undef SIMT_MMA

}  // namespace ernie::cuda
