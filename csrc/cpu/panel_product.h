// Rows times packed panels in float32, for every kind of weight: the sum of ops/gemm.h.
#pragma once

#include <algorithm>

#include "core/checked.h"
#include "core/memory.h"
#include "core/tensor.h"
#include "cpu/gemm.isa.h"
#include "cpu/gemm_blocks.h"
#include "cpu/wint4.isa.h"
#include "cpu/wint8.isa.h"

namespace ernie::cpu {

enum class PanelKind : uint8_t { kF32, kBf16, kWint8, kWint4 };

// The panels of one matrix, in place, or packed when they are asked for.
template <auto Pack>
class MatrixPanels {
 public:
  MatrixPanels(const TensorView& weight, int64_t panel_bytes)
      : weight_(weight), panel_bytes_(panel_bytes) {}

  void* at(int64_t panel, int64_t panels) const {
    if (weight_.rank != 2) return weight_.ptr<char>() + panel * panel_bytes_;
    char* buffer = static_cast<char*>(scratch(ScratchSlot::kPanel, panels * panel_bytes_));
    for (int64_t p = 0; p < panels; ++p) Pack(weight_, panel + p, buffer + p * panel_bytes_);
    return buffer;
  }

  // Where a panel lies, if there is one and in place.
  const void* peek(int64_t panel) const {
    return weight_.rank != 2 && panel < weight_.size(0) ? at(panel, 1) : nullptr;
  }

 private:
  const TensorView& weight_;
  const int64_t panel_bytes_;
};

class PanelProduct {
 public:
  // `end`: behind the last panel of a weight that is read in place, or null.
  PanelProduct(PanelKind kind, DType x, int64_t in_features, const void* end)
      : kind_(kind),
        dot_(kind != PanelKind::kF32 && x == DType::kBF16 && prefers_bf16_dot()),
        depth_(kind == PanelKind::kF32 ? in_features : round_up(in_features, 2)),
        panel_bytes_(panel_bytes_of(kind, in_features)),
        end_(end) {}

  bool x_is_float() const { return !dot_; }  // what rows are read as; else bfloat16
  int64_t depth() const { return depth_; }   // of rows: in_features, to a whole pair
  int64_t panel_bytes() const { return panel_bytes_; }

  // acc[r, 16p + i] = sum_k x[r, k] * w[p, k, i]. `next` are the panels to be read after these, or
  // null. Few rows stream quantized weights once; else they go through blocks of k that stay in the
  // cache. The bits are the same.
  void multiply(const Rows& x, int64_t rows, const void* w, int64_t panels, const void* next,
                float* acc, int64_t acc_stride) const {
    const bool streams = rows <= kStreamedRows;
    if (streams && is_quantized())
      return stream_of_kind()({.x = x.data,
                               .x_stride = x.stride,
                               .rows = rows,
                               .w = static_cast<const uint8_t*>(w),
                               .w_stride = panel_bytes_,
                               .panels = panels,
                               .w_end = static_cast<const uint8_t*>(end_),
                               .k = depth_,
                               .acc = acc,
                               .acc_stride = acc_stride});
    if (streams) return add_columns(x, rows, w, panels, 0, depth_, nullptr, acc, acc_stride);
    for (int64_t k = 0; k < depth_ || k == 0; k += kDepthBlock) {
      const bool is_last = k + kDepthBlock >= depth_;
      add_columns(x, rows, w, panels, k, std::min(kDepthBlock, depth_ - k),
                  is_last ? next : offset(w, column_bytes(k + kDepthBlock), 1), acc, acc_stride);
    }
  }

 private:
  // 4 panels (the inner tile's width) of this many bfloat16 are 128 KiB and stream from L2: with
  // 512 tokens on one Zen 5 core 96 to 99 % of the dot product's peak; a quarter as many reach some
  // 94 %.
  static constexpr int64_t kDepthBlock = 1024;

  static int64_t panel_bytes_of(PanelKind kind, int64_t k) {
    switch (kind) {
      case PanelKind::kF32:
        return kPanelRows * k * 4;
      case PanelKind::kBf16:
        return kPanelRows * round_up(k, 2) * 2;
      case PanelKind::kWint8:
        return kPanelRows * round_up(k, 4);
      default:
        return kPanelRows * round_up(k, 8) / 2;
    }
  }

  // Of k columns of a panel.
  int64_t column_bytes(int64_t k) const { return panel_bytes_of(kind_, k); }

  bool is_quantized() const { return kind_ == PanelKind::kWint8 || kind_ == PanelKind::kWint4; }

  using StreamFn = void (*)(const QuantizedBlock&);

  // What multiplies quantized panels as they stream.
  StreamFn stream_of_kind() const {
    static const auto wint8_by_f32 = ERNIE_SELECT_ISA(StreamFn, wint8_f32);
    static const auto wint8_by_bf16 = ERNIE_SELECT_ISA(StreamFn, wint8_bf16);
    static const auto wint4_by_f32 = ERNIE_SELECT_ISA(StreamFn, wint4_f32);
    static const auto wint4_by_bf16 = ERNIE_SELECT_ISA(StreamFn, wint4_bf16);
    if (kind_ == PanelKind::kWint8) return dot_ ? wint8_by_bf16 : wint8_by_f32;
    return dot_ ? wint4_by_bf16 : wint4_by_f32;
  }

  // acc (+)= the products of columns [k, k + columns).
  void add_columns(const Rows& x, int64_t rows, const void* w, int64_t panels, int64_t k,
                   int64_t columns, const void* next, float* acc, int64_t acc_stride) const {
    using Fn = void (*)(const GemmBlock&);
    static const auto f32_f32 = ERNIE_SELECT_ISA(Fn, gemm_f32_f32);
    static const auto f32_bf16 = ERNIE_SELECT_ISA(Fn, gemm_f32_bf16);
    static const auto bf16_bf16 = ERNIE_SELECT_ISA(Fn, gemm_bf16_bf16);
    const bool is_f32 = kind_ == PanelKind::kF32;
    const int64_t itemsize = is_f32 ? sizeof(float) : sizeof(bf16);
    const bool expands = is_quantized();
    (is_f32 ? f32_f32
     : dot_ ? bf16_bf16
            : f32_bf16)(
        {.x = offset(x.data, k, dot_ ? sizeof(bf16) : sizeof(float)),
         .x_stride = x.stride,
         .rows = rows,
         .w = expands ? expand(w, panels, k, columns) : offset(w, k * kPanelRows, itemsize),
         .w_stride = expands ? columns * kPanelRows : panel_bytes_ / itemsize,
         .panels = panels,
         .k = columns,
         .acc = acc,
         .acc_stride = acc_stride,
         .accumulate = k > 0,
         .next = next,
         .next_stride = panel_bytes_,
         .columns_per_line = 64 * kDepthBlock / column_bytes(kDepthBlock)});
  }

  // Columns [k, k + columns) of quantized panels as bfloat16, in scratch of the calling thread.
  const void* expand(const void* w, int64_t panels, int64_t k, int64_t columns) const {
    using Fn = void (*)(const uint8_t*, int64_t, bf16*);
    static const auto wint8 = ERNIE_SELECT_ISA(Fn, wint8_expand);
    static const auto wint4 = ERNIE_SELECT_ISA(Fn, wint4_expand);
    const auto expand_panel = kind_ == PanelKind::kWint8 ? wint8 : wint4;
    const int64_t size = columns * kPanelRows;
    auto* buffer = static_cast<bf16*>(scratch(ScratchSlot::kPartial, panels * size * sizeof(bf16)));
    const auto* from = static_cast<const uint8_t*>(w) + column_bytes(k);  // k: whole words
    for (int64_t p = 0; p < panels; ++p)
      expand_panel(from + p * panel_bytes_, columns, buffer + p * size);
    return buffer;
  }

  const PanelKind kind_;
  const bool dot_;
  const int64_t depth_, panel_bytes_;
  const void* const end_;
};

// Blocks of x * weight, by any thread. Pack(weight, panel, out) packs a panel of a plain weight.
template <auto Pack>
class MatrixProduct {
 public:
  MatrixProduct(PanelKind kind, const TensorView& x, const TensorView& weight)
      : product_(kind, x.dtype, x.size(1), end_of_packed(weight, 2)),
        x_(prepare_rows(x, product_.x_is_float(), product_.depth())),
        panels_(weight, product_.panel_bytes()) {}

  // acc[r, i] = x[row + r] * weight[16 panel + i].
  void multiply(int64_t row, int64_t rows, int64_t panel, int64_t panels, float* acc,
                int64_t acc_stride) const {
    const int64_t itemsize = product_.x_is_float() ? sizeof(float) : sizeof(bf16);
    product_.multiply({offset(x_.data, row * x_.stride, itemsize), x_.stride}, rows,
                      panels_.at(panel, panels), panels, panels_.peek(panel + panels), acc,
                      acc_stride);
  }

 private:
  const PanelProduct product_;
  const Rows x_;
  const MatrixPanels<Pack> panels_;
};

}  // namespace ernie::cpu
