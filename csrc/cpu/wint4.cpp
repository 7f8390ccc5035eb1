#include "ops/wint4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm_blocks.h"
#include "cpu/panel_product.h"

namespace ernie::cpu {
namespace {

// -------------------------------------------------------------------------- quantizing, packing

// One row of a weight: its values, -7 to 7, two in a byte, and its scale. NaN or infinity: zeros
// and NaN.
template <class T>
float quantize_row(const T* weight, int64_t n, uint8_t* out) {
  uint32_t largest = 0;  // as bits, magnitudes are ordered as integers are, NaN last
  for (int64_t k = 0; k < n; ++k) {
    const float value = to_float(weight[k]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  float max_abs;
  std::memcpy(&max_abs, &largest, sizeof max_abs);
  const int64_t row_bytes = ceil_div(n, 2);
  if (max_abs == 0.f || !std::isfinite(max_abs)) {
    std::fill_n(out, row_bytes, uint8_t{0});
    return max_abs == 0.f ? 0.f : NAN;
  }
  const auto nibble = [&](int64_t k) {
    // Half away from zero, by a truncation that the compiler has vectors for.
    const float value = to_float(weight[k]) / max_abs * 7.f;
    const int32_t whole = static_cast<int32_t>(value);
    const float rest = value - static_cast<float>(whole);
    return static_cast<uint32_t>(whole + (rest >= 0.5f) - (rest <= -0.5f)) & 15u;
  };
  for (int64_t j = 0; j < n / 2; ++j)
    out[j] = static_cast<uint8_t>(nibble(2 * j) | nibble(2 * j + 1) << 4);
  if (n % 2 != 0) out[n / 2] = static_cast<uint8_t>(nibble(n - 1));
  return max_abs / 7.f;
}

// Four plain bytes to the 32 bits of a packed element: the low nibbles first, then the high ones.
uint32_t packed_octet(uint32_t bytes) {
  const auto gather = [](uint32_t nibbles) {  // 0x0d0c0b0a -> 0xdcba
    nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
    return (nibbles | nibbles >> 8) & 0xffffu;
  };
  return gather(bytes & 0x0f0f0f0fu) | gather(bytes >> 4 & 0x0f0f0f0fu) << 16;
}

// Panel of rows [0, rows) of a plain matrix with rows of row_bytes.
void pack_panel(const uint8_t* weight, int64_t stride, int64_t rows, int64_t row_bytes,
                uint8_t* out) {
  for (int64_t j = 0; j < row_bytes; j += 4)
    for (int64_t r = 0; r < kPanelRows; ++r, out += 4) {
      uint32_t octet = 0;
      if (r < rows)
        std::memcpy(&octet, weight + r * stride + j, std::min<int64_t>(4, row_bytes - j));
      octet = packed_octet(octet);
      std::memcpy(out, &octet, sizeof octet);
    }
}

// Panel `panel` of the plain matrix.
void pack_panel_of(const TensorView& weight, int64_t panel, void* out) {
  const int64_t first = panel * kPanelRows;
  pack_panel(weight.ptr<uint8_t>() + first * weight.step(0), weight.step(0),
             std::min(kPanelRows, weight.size(0) - first), weight.size(1),
             static_cast<uint8_t*>(out));
}

// The rows of one panel, to wherever `out` wants them.
template <class T>
void quantize_panel(const Wint4QuantizeArgs& a, int64_t panel) {
  const int64_t n = a.weight.size(1), first = panel * kPanelRows, row_bytes = ceil_div(n, 2);
  const int64_t rows = std::min(kPanelRows, a.weight.size(0) - first);
  const bool packs = a.out.rank != 2;
  auto* values = packs ? static_cast<uint8_t*>(scratch(ScratchSlot::kPanel, rows * row_bytes))
                       : a.out.ptr<uint8_t>() + first * row_bytes;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = a.weight.ptr<T>() + (first + r) * a.weight.step(0);
    const float scale = quantize_row(row, n, values + r * row_bytes);
    a.scale.ptr<float>()[first + r] = sizeof(T) == 2 ? to_float(to_bf16(scale)) : scale;
  }
  if (packs)
    pack_panel(values, row_bytes, rows, row_bytes, a.out.ptr<uint8_t>() + panel * a.out.step(0));
}

// ------------------------------------------------------------------------------------- products

using Product = MatrixProduct<pack_panel_of>;

// --------------------------------------------------------------------------------------- outputs

using ScaleFn = void (*)(float*, const float*, int64_t);

template <class B, class T>
void linear_t(const Wint4LinearArgs& a) {
  using FinishFn = void (*)(const float*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  const Product product(PanelKind::kWint4, a.x, a.weight);
  for_each_product(product, a.x.size(0), a.out.size(1),
                   [&](float* acc, int64_t acc_stride, int64_t row, int64_t rows, int64_t column,
                       int64_t columns) {
                     const B* bias = a.bias ? a.bias->ptr<B>() + column : nullptr;
                     for (int64_t r = 0; r < rows; ++r, acc += acc_stride) {
                       scale_row(acc, a.scale.ptr<float>() + column, columns);
                       finish(acc, bias, a.out.ptr<T>() + (row + r) * a.out.step(0) + column,
                              columns);
                     }
                   });
}

template <class B, class T>
void linear_silu_and_mul_t(const Wint4LinearSiluAndMulArgs& a) {
  using FinishFn = void (*)(const float*, const float*, const B*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  const int64_t size = a.out.size(1);
  const Product product(PanelKind::kWint4, a.x, a.weight);
  for_each_gated_product(product, a.x.size(0), size,
                         [&](float* gate, float* up, int64_t acc_stride, int64_t row, int64_t rows,
                             int64_t column, int64_t columns) {
                           const float* scale = a.scale.ptr<float>() + column;
                           const B* gate_bias = a.bias ? a.bias->ptr<B>() + column : nullptr;
                           const B* up_bias = a.bias ? gate_bias + size : nullptr;
                           for (int64_t r = 0; r < rows;
                                ++r, gate += acc_stride, up += acc_stride) {
                             scale_row(gate, scale, columns);
                             scale_row(up, scale + size, columns);
                             finish(gate, up, gate_bias, up_bias,
                                    a.out.ptr<T>() + (row + r) * a.out.step(0) + column, columns);
                           }
                         });
}

}  // namespace

void wint4_linear(const Wint4LinearArgs& a, const Stream&) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? linear_t<float, float>(a) : linear_t<bf16, float>(a);
  else
    f32_bias ? linear_t<float, bf16>(a) : linear_t<bf16, bf16>(a);
}

void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs& a, const Stream&) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? linear_silu_and_mul_t<float, float>(a) : linear_silu_and_mul_t<bf16, float>(a);
  else
    f32_bias ? linear_silu_and_mul_t<float, bf16>(a) : linear_silu_and_mul_t<bf16, bf16>(a);
}

void wint4_quantize(const Wint4QuantizeArgs& a, const Stream&) {
  const bool is_float = a.weight.dtype == DType::kF32;
  parallel_for(ceil_div(a.weight.size(0), kPanelRows), 1, [&](int64_t panel, int64_t) {
    is_float ? quantize_panel<float>(a, panel) : quantize_panel<bf16>(a, panel);
  });
}

void wint4_pack(const Wint4PackArgs& a, const Stream&) {
  const int64_t panel_bytes = a.out.step(0);
  parallel_for(a.out.size(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel_of(a.weight, p, a.out.ptr<uint8_t>() + p * panel_bytes);
  });
}

}  // namespace ernie::cpu
