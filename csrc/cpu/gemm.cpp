#include "ops/gemm.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm.isa.h"
#include "cpu/gemm_blocks.h"
#include "cpu/panel_product.h"

namespace ernie::cpu {
namespace {

// ------------------------------------------------------------------------------------- packing

template <class T>
void pack_panel(const T* weight, int64_t row_stride, int64_t rows, int64_t k, int64_t group,
                T* out) {
  // out[j, r, i] = weight[r, group * j + i]
  for (int64_t j = 0; j < ceil_div(k, group); ++j)
    for (int64_t r = 0; r < kPanelRows; ++r)
      for (int64_t i = 0; i < group; ++i) {
        const int64_t column = group * j + i;
        *out++ = r < rows && column < k ? weight[r * row_stride + column] : T{};
      }
}

// Whole pairs of 16 whole rows, which is nearly every panel: 32-bit words, 16 streams in, one out.
void pack_full_bf16_panel(const bf16* weight, int64_t row_stride, int64_t k, bf16* out) {
  for (int64_t j = 0; j < k; j += 2, out += 2 * kPanelRows)
    for (int64_t r = 0; r < kPanelRows; ++r)
      std::memcpy(out + 2 * r, weight + r * row_stride + j, sizeof(uint32_t));
}

// Panel `panel` of the [out_features, in_features] matrix `weight`.
void pack_panel_of(const TensorView& weight, int64_t panel, void* out) {
  const int64_t first = panel * kPanelRows, k = weight.size(1);
  const int64_t rows = std::min(kPanelRows, weight.size(0) - first);
  if (weight.dtype == DType::kF32) {
    pack_panel(weight.ptr<float>() + first * weight.step(0), weight.step(0), rows, k, 1,
               static_cast<float*>(out));
    return;
  }
  const bf16* source = weight.ptr<bf16>() + first * weight.step(0);
  if (rows == kPanelRows && k % 2 == 0)
    pack_full_bf16_panel(source, weight.step(0), k, static_cast<bf16*>(out));
  else
    pack_panel(source, weight.step(0), rows, k, 2, static_cast<bf16*>(out));
}

// ------------------------------------------------------------------------------------- product

template <class B, class T>
void finish_t(const LinearArgs& a, const float* acc, int64_t acc_stride, int64_t row, int64_t rows,
              int64_t column, int64_t columns) {
  using FinishFn = void (*)(const float*, const B*, T*, int64_t);
  using ActivateFn = void (*)(const float*, const B*, T*, int64_t, Activation);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  static const auto finish_and_activate = ERNIE_SELECT_ISA(ActivateFn, finish_activated);
  const B* bias = a.bias ? a.bias->ptr<B>() + column : nullptr;
  for (int64_t r = 0; r < rows; ++r, acc += acc_stride) {
    T* out = a.out.ptr<T>() + (row + r) * a.out.step(0) + column;
    if (a.activation == Activation::kNone)
      finish(acc, bias, out, columns);
    else
      finish_and_activate(acc, bias, out, columns, a.activation);
  }
}

void finish(const LinearArgs& a, const float* acc, int64_t acc_stride, int64_t row, int64_t rows,
            int64_t column, int64_t columns) {
  const bool f32_bias = a.weight.dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? finish_t<float, float>(a, acc, acc_stride, row, rows, column, columns)
             : finish_t<bf16, float>(a, acc, acc_stride, row, rows, column, columns);
  else
    f32_bias ? finish_t<float, bf16>(a, acc, acc_stride, row, rows, column, columns)
             : finish_t<bf16, bf16>(a, acc, acc_stride, row, rows, column, columns);
}

using Product = MatrixProduct<pack_panel_of>;

PanelKind kind_of(const TensorView& weight) {
  return weight.dtype == DType::kF32 ? PanelKind::kF32 : PanelKind::kBf16;
}

template <class B, class T>
void linear_silu_and_mul_t(const LinearSiluAndMulArgs& a) {
  using FinishFn = void (*)(const float*, const float*, const B*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  const int64_t size = a.out.size(1);
  const Product product(kind_of(a.weight), a.x, a.weight);
  for_each_gated_product(product, a.x.size(0), size,
                         [&](const float* gate, const float* up, int64_t acc_stride, int64_t row,
                             int64_t rows, int64_t column, int64_t columns) {
                           const B* gate_bias = a.bias ? a.bias->ptr<B>() + column : nullptr;
                           const B* up_bias = a.bias ? gate_bias + size : nullptr;
                           for (int64_t r = 0; r < rows; ++r)
                             finish(gate + r * acc_stride, up + r * acc_stride, gate_bias, up_bias,
                                    a.out.ptr<T>() + (row + r) * a.out.step(0) + column, columns);
                         });
}

}  // namespace

void linear(const LinearArgs& a, const Stream&) {
  const Product product(kind_of(a.weight), a.x, a.weight);
  for_each_product(product, a.x.size(0), a.out.size(1),
                   [&](auto... block) { finish(a, block...); });
}

void linear_silu_and_mul(const LinearSiluAndMulArgs& a, const Stream&) {
  if (a.weight.dtype == DType::kF32)
    linear_silu_and_mul_t<float, float>(a);
  else if (a.out.dtype == DType::kF32)
    linear_silu_and_mul_t<bf16, float>(a);
  else
    linear_silu_and_mul_t<bf16, bf16>(a);
}

void linear_pack(const LinearPackArgs& a, const Stream&) {
  const int64_t panel_bytes = a.out.step(0) * size_of(a.out.dtype);
  parallel_for(a.out.size(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel_of(a.weight, p, a.out.ptr<char>() + p * panel_bytes);
  });
}

}  // namespace ernie::cpu
