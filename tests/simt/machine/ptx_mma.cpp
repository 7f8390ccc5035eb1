// mma.sync: whole-warp products over operands that the lanes hold in fragments. Layouts: PTX ISA,
// "Warp-level matrix instructions", the figures of each shape.
#include <bit>
#include <cstdint>

#include "cuda/ptx/matrix.cuh"
#include "machine/machine.h"
#include "machine/multiplicands.h"

namespace simt::ptx {
namespace {

// 16 x 8, over as many k as two registers of a hold, times eight. With g = lane / 4, t = lane % 4:
//   a: register r holds row g + 8 (r % 2), columns from e t + 4 e (r / 2) on, e elements
//   b: register r holds rows from e t + 4 e r on, of column g
//   c, d: register r holds row g + 8 (r / 2), column 2 t + r % 2
template <class A, class B>
void multiply_m16n8(const Lanes& lanes) {
  using Sum = typename A::Sum;
  using Operands = MmaOperands<Sum>;
  constexpr int kElements = A::kPerRegister, kDepth = 8 * kElements;
  Sum a[16][kDepth], b[kDepth][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = lanes.of<Operands>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kElements; ++i) {
      const int k = kElements * t + i;
      for (int r = 0; r < 4; ++r)
        a[g + 8 * (r % 2)][k + 4 * kElements * (r / 2)] = A::element(o.a[r], i);
      for (int r = 0; r < 2; ++r) b[k + 4 * kElements * r][g] = B::element(o.b[r], i);
    }
    for (int r = 0; r < 4; ++r) d[g + 8 * (r / 2)][2 * t + r % 2] = o.c[r];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < 8; ++column)
        d[row][column] = multiply_add(a[row][k], b[k][column], d[row][column]);
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) lanes.of<Operands>(lane).c[r] = d[g + 8 * (r / 2)][2 * t + r % 2];
  }
}

template <class A, class B>
Accumulators<typename A::Sum> mma(const char* name, MmaOperands<typename A::Sum>& operands,
                                  const void* site) {
  whole_warp(name, &operands, &multiply_m16n8<A, B>, site);
  return {{operands.c[0], operands.c[1], operands.c[2], operands.c[3]}};
}

}  // namespace

Accumulators<float> mma_m16n8k16_bf16(MmaFloats operands) {
  return mma<Bf16, Bf16>("mma.sync.m16n8k16.bf16", operands, __builtin_return_address(0));
}
Accumulators<float> mma_m16n8k16_f16(MmaFloats operands) {
  return mma<F16, F16>("mma.sync.m16n8k16.f16", operands, __builtin_return_address(0));
}
Accumulators<float> mma_m16n8k32_e4m3(MmaFloats operands) {
  return mma<E4m3, E4m3>("mma.sync.m16n8k32.e4m3", operands, __builtin_return_address(0));
}
Accumulators<int32_t> mma_m16n8k32_s8(MmaIntegers operands) {
  return mma<S8, S8>("mma.sync.m16n8k32.s8", operands, __builtin_return_address(0));
}
Accumulators<int32_t> mma_m16n8k32_u8_s8(MmaIntegers operands) {
  return mma<U8, S8>("mma.sync.m16n8k32.u8.s8", operands, __builtin_return_address(0));
}
Accumulators<int32_t> mma_m16n8k32_s8_u8(MmaIntegers operands) {
  return mma<S8, U8>("mma.sync.m16n8k32.s8.u8", operands, __builtin_return_address(0));
}

}  // namespace simt::ptx
