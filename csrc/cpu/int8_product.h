// Rows of int8 times packed int8 panels: the sum that ops/wint8.h defines for int8_activations.
#pragma once

#include <algorithm>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/gemm_blocks.h"
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

// Rounds `rows` rows of x, from `first` on.
template <class T>
void quantize_rows_t(const TensorView& x, int64_t first, int64_t rows, const Int8Rows& all) {
  using Fn = void (*)(const T*, int64_t, int8_t*, float*, int32_t*);
  static const auto quantize_row = ERNIE_SELECT_ISA(Fn, quantize_activations_row);
  parallel_for(rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Int8Rows to = all.from(t);
      quantize_row(x.ptr<T>() + (first + t) * x.step(0), x.size(1), to.values, to.scale, to.sum);
    }
  });
}

inline void quantize_rows(const TensorView& x, int64_t first, int64_t rows, const Int8Rows& to) {
  x.dtype == DType::kF32 ? quantize_rows_t<float>(x, first, rows, to)
                         : quantize_rows_t<bf16>(x, first, rows, to);
}

inline int64_t activation_groups(const TensorView& x) {
  return ceil_div(x.size(1), kActivationGroup);
}

// All rows of x, rounded, in scratch of the calling thread.
inline Int8Rows quantized_rows(const TensorView& x) {
  const int64_t rows = x.size(0), groups = activation_groups(x);
  void* buffer = scratch(ScratchSlot::kRows, Int8Rows::nbytes(rows, groups));
  const Int8Rows all = Int8Rows::at(buffer, rows, groups);
  quantize_rows(x, 0, rows, all);
  return all;
}

// acc[r, 16p + i] = x[r] * panels of `quads` times four columns. `end`: behind the last panel of a
// weight that is read in place, or null.
inline void multiply_int8(const Int8Rows& x, int64_t rows, const int8_t* w, int64_t panels,
                          int64_t quads, const int8_t* end, float* acc, int64_t acc_stride) {
  // 2 panels (the inner tile's width) of this many groups are 32 KiB, and stay in L1 for all rows
  // of a block.
  constexpr int64_t kGroupBlock = 16, kQuads = kActivationGroup / 4;
  using Fn = void (*)(const Wint8ActivationBlock&);
  static const auto multiply_block = ERNIE_SELECT_ISA(Fn, wint8_int8);
  const bool streams = rows <= kStreamedRows;
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
                    // A single row reads in one run, which the CPU prefetches by itself.
                    .w_end = streams && rows > 1 ? end : nullptr,
                    .quads = std::min(block * kQuads, quads - g * kQuads),
                    .acc = acc,
                    .acc_stride = acc_stride,
                    .accumulate = g > 0});
}

}  // namespace ernie::cpu
