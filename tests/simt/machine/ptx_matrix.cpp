// ldmatrix and stmatrix: 8 x 8 matrices of 16-bit elements between shared memory and a warp's
// registers.
#include <cstdint>

#include "cuda/ptx/matrix.cuh"
#include "machine/machine.h"

namespace simt::ptx {
namespace {

struct Rows {
  uint16_t row[8];  // the 16 bytes at the lane's address
  Words4 matrix;    // what the lane holds of each matrix
  int count;        // of matrices
};

// Lane l's address is that of row l % 8 of matrix l / 8. Lane l holds, of each matrix, elements
// 2 (l % 4) and the next of row l / 4; transposed: of column l / 4.
uint16_t& element(const Lanes& lanes, int matrix, int row, int column) {
  return lanes.of<Rows>(8 * matrix + row).row[column];
}

template <bool kTransposed>
uint16_t& held(const Lanes& lanes, int matrix, int lane, int i) {
  const int line = lane / 4, at = 2 * (lane % 4) + i;
  return kTransposed ? element(lanes, matrix, at, line) : element(lanes, matrix, line, at);
}

template <bool kTransposed>
void distribute(const Lanes& lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& own = lanes.of<Rows>(lane);
    for (int m = 0; m < own.count; ++m)
      own.matrix.word[m] =
          held<kTransposed>(lanes, m, lane, 0) | held<kTransposed>(lanes, m, lane, 1) << 16;
  }
}

template <bool kTransposed>
void gather(const Lanes& lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m)
      for (int i = 0; i < 2; ++i)
        held<kTransposed>(lanes, m, lane, i) =
            static_cast<uint16_t>(lanes.of<Rows>(lane).matrix.word[m] >> 16 * i);
}

const char* load_name(int count, bool transposed) {
  switch (count) {
    case 1:
      return transposed ? "ldmatrix.x1.trans" : "ldmatrix.x1";
    case 2:
      return transposed ? "ldmatrix.x2.trans" : "ldmatrix.x2";
    default:
      return transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4";
  }
}

}  // namespace

Words4 ldmatrix(const void* shared_row, int count, bool transposed) {
  const void* site = __builtin_return_address(0);
  Rows own = {};
  own.count = count;
  if (lane_index() < 8 * count) {
    check_alignment(shared_row, 16, "ldmatrix", site);
    shared_address(shared_row);
    check_read(shared_row, 16, site);
    __builtin_memcpy(own.row, shared_row, 16);
  }
  whole_warp(load_name(count, transposed), &own,
             transposed ? &distribute<true> : &distribute<false>, site);
  return own.matrix;
}

void stmatrix_x4(void* shared_row, Words4 matrix, bool transposed) {
  const void* site = __builtin_return_address(0);
  check_alignment(shared_row, 16, "stmatrix", site);
  shared_address(shared_row);
  Rows own = {};
  own.matrix = matrix;
  whole_warp(transposed ? "stmatrix.x4.trans" : "stmatrix.x4", &own,
             transposed ? &gather<true> : &gather<false>, site);
  check_write(shared_row, 16, site);
  __builtin_memcpy(shared_row, own.row, 16);
}

}  // namespace simt::ptx
