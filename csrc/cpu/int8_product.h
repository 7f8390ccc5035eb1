// Rows of int8 times packed int8 panels: the sum that ops/wint8.h defines for int8_activations.
#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "cpu/quantize_activations.isa.h"
#include "cpu/wint8.isa.h"

namespace ernie::cpu {

// Rows as quantize_activations_row leaves them.
struct Int8Rows {
  int8_t* values;  // [rows, 64 * groups]
  float* scale;    // [rows, groups]
  int32_t* sum;    // [rows, groups]
  int64_t groups;

  // Where `rows` of them find room in `nbytes` bytes at `buffer`.
  static int64_t nbytes(int64_t rows, int64_t groups) {
    return rows * groups * static_cast<int64_t>(kActivationGroup + sizeof(float) + sizeof(int32_t));
  }
  static Int8Rows at(void* buffer, int64_t rows, int64_t groups) {
    auto* values = static_cast<int8_t*>(buffer);
    auto* scale = reinterpret_cast<float*>(values + rows * groups * kActivationGroup);
    return {values, scale, reinterpret_cast<int32_t*>(scale + rows * groups), groups};
  }

  Int8Rows from(int64_t row) const {
    return {values + row * groups * kActivationGroup, scale + row * groups, sum + row * groups,
            groups};
  }
};

// acc[r, 16p + i] = x[r] * panels of `quads` times four columns.
inline void multiply_int8(const Int8Rows& x, int64_t rows, const int8_t* w, int64_t panels,
                          int64_t quads, bool streams, float* acc, int64_t acc_stride) {
  // 2 panels of this many groups are 32 KiB, and stay in L1 for all rows of a block.
  constexpr int64_t kGroupBlock = 16, kQuads = kActivationGroup / 4;
  using Fn = void (*)(const Wint8ActivationBlock&);
  static const auto multiply_block = ERNIE_SELECT_ISA(Fn, wint8_int8);
  const int64_t block = streams ? std::max<int64_t>(x.groups, 1) : kGroupBlock;
  for (int64_t g = 0; g < x.groups || g == 0; g += block)
    multiply_block({.x = x.values + g * kActivationGroup,
                    .x_scale = x.scale + g,
                    .x_sum = x.sum + g,
                    .row_groups = x.groups,
                    .rows = rows,
                    .w = w + g * kActivationGroup * kPanelRows,
                    .w_stride = quads * 4 * kPanelRows,
                    .panels = panels,
                    .quads = std::min(block * kQuads, quads - g * kQuads),
                    .acc = acc,
                    .acc_stride = acc_stride,
                    .accumulate = g > 0});
}

}  // namespace ernie::cpu
