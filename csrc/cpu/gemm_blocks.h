// How products with packed weights are cut into blocks, shared by gemm.cpp and wint8.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/gemm.isa.h"

namespace ernie::cpu {

// Rows whose accumulators (512 bytes each) stay in L2 beside the weights of a k block.
constexpr int64_t kRowBlock = 96;
// Few tokens stream all of k at once: nothing is used twice.
constexpr int64_t kStreamedRows = 6;

inline const char* offset(const void* p, int64_t elements, int64_t itemsize) {
  return static_cast<const char*>(p) + elements * itemsize;
}

inline float* accumulators(int64_t rows, int64_t columns) {
  return static_cast<float*>(scratch(ScratchSlot::kAccumulator, rows * columns * sizeof(float)));
}

// Behind the last byte of a contiguous weight, if it is packed: what is packed now is in the cache.
inline const void* end_of_packed(const TensorView& weight, int plain_rank) {
  if (weight.rank == plain_rank) return nullptr;
  return weight.ptr<char>() + weight.numel() * size_of(weight.dtype);
}

// x as a leaf reads it: in place, or widened and padded into scratch of the calling thread.
struct Rows {
  const void* data;
  int64_t stride;
};

// Row t as float, or as bfloat16 (then x is), `depth` columns, of which those beyond x are zero.
inline void prepare_row(const TensorView& x, int64_t t, bool is_float, int64_t depth, void* out) {
  using WidenF32 = void (*)(const float*, float*, int64_t, int64_t);
  using WidenBf16 = void (*)(const bf16*, float*, int64_t, int64_t);
  static const auto widen_f32 = ERNIE_SELECT_ISA(WidenF32, widen_row);
  static const auto widen_bf16 = ERNIE_SELECT_ISA(WidenBf16, widen_row);
  const int64_t k = x.size(1);
  if (!is_float) {
    bf16* row = static_cast<bf16*>(out);
    std::memcpy(row, x.ptr<bf16>() + t * x.step(0), k * sizeof(bf16));
    for (int64_t i = k; i < depth; ++i) row[i] = bf16{};
  } else if (x.dtype == DType::kF32) {
    widen_f32(x.ptr<float>() + t * x.step(0), static_cast<float*>(out), k, depth);
  } else {
    widen_bf16(x.ptr<bf16>() + t * x.step(0), static_cast<float*>(out), k, depth);
  }
}

// All rows.
inline Rows prepare_rows(const TensorView& x, bool is_float, int64_t depth) {
  const int64_t rows = x.size(0);
  const bool as_is = (x.dtype == DType::kF32) == is_float && x.size(1) == depth;
  if (as_is) return {x.data, x.step(0)};
  const int64_t row_bytes = depth * static_cast<int64_t>(is_float ? sizeof(float) : sizeof(bf16));
  char* buffer = static_cast<char*>(scratch(ScratchSlot::kRows, rows * row_bytes));
  for (int64_t t = 0; t < rows; ++t) prepare_row(x, t, is_float, depth, buffer + t * row_bytes);
  return {buffer, depth};
}

// Calls f(group, row, rows) for all groups of weights and blocks of rows; the rows change fastest,
// so that a thread finds its group of weights in its cache again.
template <class F>
void for_each_block(int64_t groups, int64_t num_tokens, const F& f) {
  const int64_t row_blocks = ceil_div(num_tokens, kRowBlock);
  parallel_for(groups * row_blocks, 1, [&](int64_t block, int64_t) {
    const int64_t row = block % row_blocks * kRowBlock;
    f(block / row_blocks, row, std::min(kRowBlock, num_tokens - row));
  });
}

// All blocks of x * weight, by product.multiply(row, rows, panel, panels, acc, acc_stride):
// finish(acc, acc_stride, row, rows, column, columns) for each.
template <class Product, class Finish>
void for_each_product(const Product& product, int64_t num_tokens, int64_t out_features,
                      const Finish& finish) {
  constexpr int64_t kWidth = kMaxPanels * kPanelRows;
  const int64_t panels = ceil_div(out_features, kPanelRows);
  for_each_block(
      ceil_div(panels, kMaxPanels), num_tokens, [&](int64_t group, int64_t row, int64_t rows) {
        const int64_t panel = group * kMaxPanels, column = group * kWidth;
        float* acc = accumulators(rows, kWidth);
        product.multiply(row, rows, panel, std::min(kMaxPanels, panels - panel), acc, kWidth);
        finish(acc, kWidth, row, rows, column, std::min(kWidth, out_features - column));
      });
}

// The same for a weight of gate rows, then up rows, `size` each:
// finish(gate, up, acc_stride, row, rows, column, columns).
template <class Product, class Finish>
void for_each_gated_product(const Product& product, int64_t num_tokens, int64_t size,
                            const Finish& finish) {
  // Gate and up panels of many tokens share the cache that a group otherwise has for itself.
  const int64_t panels = num_tokens <= kStreamedRows ? kMaxPanels : kMaxPanels / 2;
  const int64_t width = panels * kPanelRows;
  // The up rows may begin inside a panel, and end in one more.
  const int64_t acc_stride = 2 * width + kPanelRows;
  for_each_block(ceil_div(size, width), num_tokens, [&](int64_t group, int64_t row, int64_t rows) {
    const int64_t column = group * width, columns = std::min(width, size - column);
    const int64_t up_panel = (size + column) / kPanelRows, skip = (size + column) % kPanelRows;
    float* gate = accumulators(rows, acc_stride);
    float* up = gate + width;
    product.multiply(row, rows, column / kPanelRows, ceil_div(columns, kPanelRows), gate,
                     acc_stride);
    product.multiply(row, rows, up_panel, ceil_div(skip + columns, kPanelRows), up, acc_stride);
    finish(gate, up + skip, acc_stride, row, rows, column, columns);
  });
}

}  // namespace ernie::cpu
