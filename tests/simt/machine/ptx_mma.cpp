// Tensor-core instructions: whole-warp products over operands that the lanes hold in fragments.
// Layouts: PTX ISA, "Warp-level matrix instructions", the figures of each shape.
#include <bit>
#include <cstdint>

#include "cuda/ptx.cuh"
#include "machine/machine.h"

namespace simt::ptx {
namespace {

// Element i (0 or 1) of a register that holds two bfloat16.
float bf16_of(uint32_t pair, int i) {
  return std::bit_cast<float>(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

// With g = lane / 4 and t = lane % 4:
//   a: register r holds row g + 8 (r % 2), columns 2t, 2t + 1, + 8 (r / 2)
//   b: register r holds rows 2t, 2t + 1, + 8 r, of column g
//   c, d: register r holds row g + 8 (r / 2), column 2t + r % 2
void multiply_m16n8k16_bf16(const Lanes& lanes) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = lanes.of<MmaBf16>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = bf16_of(o.a[r], i);
      for (int r = 0; r < 2; ++r) b[2 * t + i + 8 * r][g] = bf16_of(o.b[r], i);
    }
    for (int r = 0; r < 4; ++r) d[g + 8 * (r / 2)][2 * t + r % 2] = o.c[r];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) lanes.of<MmaBf16>(lane).c[r] = d[g + 8 * (r / 2)][2 * t + r % 2];
  }
}

struct LdMatrix {
  uint32_t row[4];     // the 16 bytes at the lane's address
  uint32_t matrix[4];  // the lane's result
};

// Lane l gives row l % 8 of matrix l / 8. Lane l gets, of each matrix, elements 2 (l % 4) and the
// next of row l / 4; transposed: of column l / 4.
template <bool kTransposed>
void distribute(const Lanes& lanes) {
  const auto element = [&](int matrix, int row, int column) -> uint32_t {
    return lanes.of<LdMatrix>(8 * matrix + row).row[column / 2] >> (column % 2 * 16) & 0xffff;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int i = lane / 4, j = 2 * (lane % 4);
    for (int m = 0; m < 4; ++m)
      lanes.of<LdMatrix>(lane).matrix[m] = kTransposed
                                               ? element(m, j, i) | element(m, j + 1, i) << 16
                                               : element(m, i, j) | element(m, i, j + 1) << 16;
  }
}

}  // namespace

Floats4 mma_m16n8k16_bf16(MmaBf16 operands) {
  whole_warp("mma.sync.m16n8k16.bf16", &operands, &multiply_m16n8k16_bf16,
             __builtin_return_address(0));
  return {{operands.c[0], operands.c[1], operands.c[2], operands.c[3]}};
}

Words4 ldmatrix_x4(const void* shared_row, bool transposed) {
  const void* site = __builtin_return_address(0);
  check_alignment(shared_row, 16, "ldmatrix", site);
  shared_address(shared_row);
  check_read(shared_row, 16, site);
  LdMatrix own;
  __builtin_memcpy(own.row, shared_row, 16);
  whole_warp(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", &own,
             transposed ? &distribute<true> : &distribute<false>, site);
  return {{own.matrix[0], own.matrix[1], own.matrix[2], own.matrix[3]}};
}

}  // namespace simt::ptx
