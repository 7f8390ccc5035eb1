// Rounding a weight to few bits, and packing what was rounded: for wint8.cpp and wint4.cpp. What a
// kind of weight is made of, a Format says:
//
//   kLargest                            the magnitude that a row's largest becomes
//   row_bytes(in_features)              of a plain row
//   round_row(weight, n, max_abs, out)  rounds a row
//   packed(word)                        four bytes of a plain row as an element of a panel
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/gemm.isa.h"
#include "ops/quantize_core.h"

namespace ernie::cpu {

// One row of a weight: its rounded values and its scale. NaN or infinity: zeros and NaN.
template <class Format, class T>
float quantize_row(const T* weight, int64_t n, uint8_t* out) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < n; ++k) bits = std::max(bits, magnitude_bits(to_float(weight[k])));
  if (bits == 0 || bits >= kInfinityBits) {
    std::fill_n(out, Format::row_bytes(n), uint8_t{0});
    return bits == 0 ? 0.f : NAN;
  }
  float max_abs;
  std::memcpy(&max_abs, &bits, sizeof max_abs);
  Format::round_row(weight, n, max_abs, out);
  return max_abs / Format::kLargest;
}

// Panel of rows [0, rows) of a plain matrix with rows of row_bytes.
template <class Format>
void pack_panel(const uint8_t* weight, int64_t stride, int64_t rows, int64_t row_bytes,
                uint8_t* out) {
  for (int64_t j = 0; j < row_bytes; j += 4)
    for (int64_t r = 0; r < kPanelRows; ++r, out += 4) {
      uint32_t word = 0;
      if (r < rows && j + 4 <= row_bytes) [[likely]]
        std::memcpy(&word, weight + r * stride + j, 4);
      else if (r < rows)
        std::memcpy(&word, weight + r * stride + j, row_bytes - j);
      word = Format::packed(word);
      std::memcpy(out, &word, sizeof word);
    }
}

// Panel `panel` of the plain matrix.
template <class Format>
void pack_panel_of(const TensorView& weight, int64_t panel, void* out) {
  const int64_t first = panel * kPanelRows;
  pack_panel<Format>(weight.ptr<uint8_t>() + first * weight.step(0), weight.step(0),
                     std::min(kPanelRows, weight.size(0) - first), weight.size(1),
                     static_cast<uint8_t*>(out));
}

// The rows of one panel, to wherever `out` wants them.
template <class Format, class T, class Args>
void quantize_panel(const Args& a, int64_t panel) {
  const int64_t n = a.weight.size(1), first = panel * kPanelRows, row_bytes = Format::row_bytes(n);
  const int64_t rows = std::min(kPanelRows, a.weight.size(0) - first);
  const bool packs = a.out.rank != 2;
  auto* values = packs ? static_cast<uint8_t*>(scratch(ScratchSlot::kPanel, rows * row_bytes))
                       : a.out.template ptr<uint8_t>() + first * row_bytes;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = a.weight.template ptr<T>() + (first + r) * a.weight.step(0);
    const float scale = quantize_row<Format>(row, n, values + r * row_bytes);
    a.scale.template ptr<float>()[first + r] = sizeof(T) == 2 ? to_float(to_bf16(scale)) : scale;
  }
  if (packs)
    pack_panel<Format>(values, row_bytes, rows, row_bytes,
                       a.out.template ptr<uint8_t>() + panel * a.out.step(0));
}

template <class Format, class Args>
void quantize(const Args& a) {
  const bool is_float = a.weight.dtype == DType::kF32;
  parallel_for(ceil_div(a.weight.size(0), kPanelRows), 1, [&](int64_t panel, int64_t) {
    is_float ? quantize_panel<Format, float>(a, panel) : quantize_panel<Format, bf16>(a, panel);
  });
}

template <class Format, class Args>
void pack(const Args& a) {
  const int64_t panel_bytes = a.out.step(0);
  parallel_for(a.out.size(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel_of<Format>(a.weight, p, a.out.template ptr<uint8_t>() + p * panel_bytes);
  });
}

}  // namespace ernie::cpu
