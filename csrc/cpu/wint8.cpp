#include "ops/wint8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm.isa.h"
#include "cpu/gemm_blocks.h"
#include "cpu/int8_product.h"
#include "cpu/panel_product.h"
#include "cpu/wint8.isa.h"

namespace ernie::cpu {
namespace {

// -------------------------------------------------------------------------- quantizing, packing

// One row of a weight: its int8 values and its scale, float32. NaN or infinity: zeros and NaN.
template <class T>
float quantize_row(const T* weight, int64_t n, int8_t* out) {
  uint32_t largest = 0;  // as bits, magnitudes are ordered as integers are, NaN last
  for (int64_t k = 0; k < n; ++k) {
    const float value = to_float(weight[k]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  float max_abs;
  std::memcpy(&max_abs, &largest, sizeof max_abs);
  if (max_abs == 0.f || !std::isfinite(max_abs)) {
    std::fill_n(out, n, int8_t{0});
    return max_abs == 0.f ? 0.f : NAN;
  }
  for (int64_t k = 0; k < n; ++k) {
    // Half away from zero, by a truncation that the compiler has vectors for.
    const float value = to_float(weight[k]) / max_abs * 127.f;
    const int32_t whole = static_cast<int32_t>(value);
    const float rest = value - static_cast<float>(whole);
    out[k] = static_cast<int8_t>(whole + (rest >= 0.5f) - (rest <= -0.5f));
  }
  return max_abs / 127.f;
}

// Panel of rows [0, rows) of an int8 matrix with k columns.
void pack_panel(const int8_t* weight, int64_t stride, int64_t rows, int64_t k, int8_t* out) {
  for (int64_t j = 0; j < k; j += 4)
    for (int64_t r = 0; r < kPanelRows; ++r, out += 4) {
      if (r < rows && j + 4 <= k) [[likely]] {
        std::memcpy(out, weight + r * stride + j, 4);
        continue;
      }
      for (int64_t i = 0; i < 4; ++i)
        out[i] = r < rows && j + i < k ? weight[r * stride + j + i] : int8_t{0};
    }
}

// Panel `panel` of the int8 matrix [out_features, in_features].
void pack_panel_of(const TensorView& weight, int64_t panel, void* out) {
  const int64_t first = panel * kPanelRows;
  pack_panel(weight.ptr<int8_t>() + first * weight.step(0), weight.step(0),
             std::min(kPanelRows, weight.size(0) - first), weight.size(1),
             static_cast<int8_t*>(out));
}

// The rows of one panel, to wherever `out` wants them.
template <class T>
void quantize_panel(const Wint8QuantizeArgs& a, int64_t panel) {
  const int64_t n = a.weight.size(1), first = panel * kPanelRows;
  const int64_t rows = std::min(kPanelRows, a.weight.size(0) - first);
  const bool packs = a.out.rank != 2;
  int8_t* values = packs ? static_cast<int8_t*>(scratch(ScratchSlot::kPanel, rows * n))
                         : a.out.ptr<int8_t>() + first * n;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = a.weight.ptr<T>() + (first + r) * a.weight.step(0);
    const float scale = quantize_row(row, n, values + r * n);
    a.scale.ptr<float>()[first + r] = sizeof(T) == 2 ? to_float(to_bf16(scale)) : scale;
  }
  if (packs) pack_panel(values, n, rows, n, a.out.ptr<int8_t>() + panel * a.out.step(0));
}

// ------------------------------------------------------------------------------------- products

using FloatProduct = MatrixProduct<pack_panel_of>;

// Blocks of x * weight with x as int8, which it is made here, by any thread.
class Int8Product {
 public:
  Int8Product(const TensorView& x, const TensorView& weight)
      : quads_(ceil_div(x.size(1), 4)),
        end_(static_cast<const int8_t*>(end_of_packed(weight, 2))),
        panels_(weight, quads_ * 4 * kPanelRows),
        x_(quantized_rows(x)) {}

  void multiply(int64_t row, int64_t rows, int64_t panel, int64_t panels, float* acc,
                int64_t acc_stride) const {
    multiply_int8(x_.from(row), rows, static_cast<const int8_t*>(panels_.at(panel, panels)), panels,
                  quads_, end_, acc, acc_stride);
  }

 private:
  const int64_t quads_;
  const int8_t* const end_;
  const MatrixPanels<pack_panel_of> panels_;
  const Int8Rows x_;
};

// Calls f with the product that the arguments ask for.
template <class Args, class F>
void with_product(const Args& a, const F& f) {
  if (a.int8_activations)
    f(Int8Product(a.x, a.weight));
  else
    f(FloatProduct(PanelKind::kWint8, a.x, a.weight));
}

// --------------------------------------------------------------------------------------- outputs

using ScaleFn = void (*)(float*, const float*, int64_t);

template <class B, class T>
void linear_t(const Wint8LinearArgs& a) {
  using FinishFn = void (*)(const float*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  with_product(a, [&](const auto& product) {
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
  });
}

template <class B, class T>
void linear_silu_and_mul_t(const Wint8LinearSiluAndMulArgs& a) {
  using FinishFn = void (*)(const float*, const float*, const B*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  const int64_t size = a.out.size(1);
  with_product(a, [&](const auto& product) {
    for_each_gated_product(product, a.x.size(0), size,
                           [&](float* gate, float* up, int64_t acc_stride, int64_t row,
                               int64_t rows, int64_t column, int64_t columns) {
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
  });
}

}  // namespace

void wint8_linear(const Wint8LinearArgs& a, const Stream&) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? linear_t<float, float>(a) : linear_t<bf16, float>(a);
  else
    f32_bias ? linear_t<float, bf16>(a) : linear_t<bf16, bf16>(a);
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream&) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? linear_silu_and_mul_t<float, float>(a) : linear_silu_and_mul_t<bf16, float>(a);
  else
    f32_bias ? linear_silu_and_mul_t<float, bf16>(a) : linear_silu_and_mul_t<bf16, bf16>(a);
}

void wint8_quantize(const Wint8QuantizeArgs& a, const Stream&) {
  const bool is_float = a.weight.dtype == DType::kF32;
  parallel_for(ceil_div(a.weight.size(0), kPanelRows), 1, [&](int64_t panel, int64_t) {
    is_float ? quantize_panel<float>(a, panel) : quantize_panel<bf16>(a, panel);
  });
}

void wint8_pack(const Wint8PackArgs& a, const Stream&) {
  const int64_t panel_bytes = a.out.step(0);
  parallel_for(a.out.size(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel_of(a.weight, p, a.out.ptr<int8_t>() + p * panel_bytes);
  });
}

}  // namespace ernie::cpu
