// Rows of any tokens times the panels of any expert, for grouped_gemm.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/tensor.h"
#include "cpu/gemm_blocks.h"
#include "cpu/int8_product.h"
#include "cpu/panel_product.h"
#include "ops/gemm.h"
#include "ops/grouped_gemm.h"
#include "ops/wint4.h"
#include "ops/wint8.h"

namespace ernie::cpu {

inline PanelKind kind_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return PanelKind::kF32;
    case DType::kBF16:
      return PanelKind::kBf16;
    case DType::kI8:
      return PanelKind::kWint8;
    default:
      return PanelKind::kWint4;
  }
}

// The panels of all experts, in place, or packed when they are asked for.
class ExpertPanels {
 public:
  ExpertPanels(const ExpertWeights& w, int64_t panel_bytes)
      : w_(w), panel_bytes_(panel_bytes), panels_(ceil_div(w.out_features, kPanelRows)) {}

  const void* at(int64_t expert, int64_t panel, int64_t panels) const {
    if (w_.weight.rank != 3)
      return w_.weight.ptr<char>() + (expert * panels_ + panel) * panel_bytes_;
    return pack(expert, panel, panels);
  }

  // Where they lie, if in place.
  const void* peek(int64_t expert, int64_t panel) const {
    return w_.weight.rank == 3 ? nullptr : at(expert, panel, 1);
  }

  const float* scale(int64_t expert, int64_t row) const {
    return w_.scale ? w_.scale->ptr<float>() + expert * w_.out_features + row : nullptr;
  }

 private:
  void* pack(int64_t expert, int64_t panel, int64_t panels) const {
    const TensorView& w = w_.weight;
    const int64_t first = panel * kPanelRows, itemsize = size_of(w.dtype);
    const TensorView rows{
        .data = w.ptr<char>() + (expert * w.step(0) + first * w.step(1)) * itemsize,
        .dtype = w.dtype,
        .device = w.device,
        .rank = 2,
        .shape = {std::min(panels * kPanelRows, w_.out_features - first), w.size(2)},
        .stride = {w.step(1), 1}};
    // What packs looks at the number of panels and their distance alone.
    const TensorView out{.data = scratch(ScratchSlot::kPanel, panels * panel_bytes_),
                         .dtype = w.dtype,
                         .device = w.device,
                         .rank = 2,
                         .shape = {panels, panel_bytes_ / itemsize},
                         .stride = {panel_bytes_ / itemsize, 1}};
    if (w.dtype == DType::kI8)
      cpu::wint8_pack({.out = out, .weight = rows}, {});
    else if (w.dtype == DType::kU8)
      cpu::wint4_pack({.out = out, .weight = rows}, {});
    else
      cpu::linear_pack({.out = out, .weight = rows}, {});
    return out.data;
  }

  const ExpertWeights& w_;
  const int64_t panel_bytes_, panels_;
};

// Products in float32 of rows that are gathered, and widened where they must be, as they are
// needed.
class GatheredFloatProduct {
 public:
  using X = Rows;

  GatheredFloatProduct(const TensorView& x, const int32_t* source_rows, const ExpertWeights& w)
      : product_(kind_of(w.weight.dtype), x.dtype, w.in_features, end_of_packed(w.weight, 3)),
        panels_(w, product_.panel_bytes()),
        x_(x),
        source_rows_(source_rows),
        in_place_((x.dtype == DType::kF32) == product_.x_is_float() &&
                  x.size(1) == product_.depth()) {}

  const ExpertPanels& panels() const { return panels_; }

  Rows rows(int64_t row, int64_t rows) const {
    const int64_t itemsize = size_of(x_.dtype);
    if (in_place_ && (source_rows_ == nullptr || rows == 1))
      return {offset(x_.data, source_of(row) * x_.step(0), itemsize), x_.step(0)};
    const int64_t depth = product_.depth();
    const int64_t row_bytes =
        depth * static_cast<int64_t>(product_.x_is_float() ? sizeof(float) : sizeof(bf16));
    char* buffer = static_cast<char*>(scratch(ScratchSlot::kGathered, rows * row_bytes));
    for (int64_t r = 0; r < rows; ++r)
      prepare_row(x_, source_of(row + r), product_.x_is_float(), depth, buffer + r * row_bytes);
    return {buffer, depth};
  }

  void multiply(const Rows& x, int64_t rows, const void* w, int64_t panels, const void* next,
                float* acc, int64_t acc_stride) const {
    product_.multiply(x, rows, w, panels, next, acc, acc_stride);
  }

 private:
  int64_t source_of(int64_t row) const { return source_rows_ == nullptr ? row : source_rows_[row]; }

  const PanelProduct product_;
  const ExpertPanels panels_;
  const TensorView& x_;
  const int32_t* source_rows_;
  const bool in_place_;
};

// Products of int8 rows. Each row of x is rounded once, however many experts it goes to; x begins
// with row `first_row`.
class GatheredInt8Product {
 public:
  using X = Int8Rows;

  GatheredInt8Product(const Int8Rows& x, int64_t first_row, const int32_t* source_rows,
                      const ExpertWeights& w)
      : quads_(ceil_div(w.in_features, 4)),
        end_(static_cast<const int8_t*>(end_of_packed(w.weight, 3))),
        panels_(w, quads_ * 4 * kPanelRows),
        first_row_(first_row),
        source_rows_(source_rows),
        x_(x) {}

  const ExpertPanels& panels() const { return panels_; }

  Int8Rows rows(int64_t row, int64_t rows) const {
    if (source_rows_ == nullptr) return x_.from(row - first_row_);
    if (rows == 1) return x_.from(source_rows_[row]);
    void* buffer = scratch(ScratchSlot::kGathered, Int8Rows::nbytes(rows, x_.groups));
    const Int8Rows gathered = Int8Rows::at(buffer, rows, x_.groups);
    for (int64_t r = 0; r < rows; ++r) {
      const Int8Rows from = x_.from(source_rows_[row + r]), to = gathered.from(r);
      std::memcpy(to.values, from.values, x_.groups * kActivationGroup);
      std::copy_n(from.scale, x_.groups, to.scale);
      std::copy_n(from.sum, x_.groups, to.sum);
    }
    return gathered;
  }

  void multiply(const Int8Rows& x, int64_t rows, const void* w, int64_t panels, const void*,
                float* acc, int64_t acc_stride) const {
    multiply_int8(x, rows, static_cast<const int8_t*>(w), panels, quads_, end_, acc, acc_stride);
  }

 private:
  const int64_t quads_;
  const int8_t* const end_;
  const ExpertPanels panels_;
  const int64_t first_row_;
  const int32_t* source_rows_;
  const Int8Rows x_;
};

}  // namespace ernie::cpu
