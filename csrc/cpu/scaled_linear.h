// What becomes of the sums of a weight that has a scale of each output channel: for wint8.cpp and
// wint4.cpp.
#pragma once

#include "core/isa.h"
#include "core/tensor.h"
#include "cpu/gemm.isa.h"
#include "cpu/gemm_blocks.h"
#include "cpu/wint8.isa.h"

namespace ernie::cpu {

using ScaleFn = void (*)(float*, const float*, int64_t);

// B: dtype of the bias, T: of out.
template <class B, class T, class Args, class Product>
void scaled_linear_t(const Args& a, const Product& product) {
  using FinishFn = void (*)(const float*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_row);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  for_each_product(
      product, a.x.size(0), a.out.size(1),
      [&](float* acc, int64_t acc_stride, int64_t row, int64_t rows, int64_t column,
          int64_t columns) {
        const B* bias = a.bias ? a.bias->template ptr<B>() + column : nullptr;
        for (int64_t r = 0; r < rows; ++r, acc += acc_stride) {
          scale_row(acc, a.scale.template ptr<float>() + column, columns);
          finish(acc, bias, a.out.template ptr<T>() + (row + r) * a.out.step(0) + column, columns);
        }
      });
}

template <class B, class T, class Args, class Product>
void scaled_linear_silu_and_mul_t(const Args& a, const Product& product) {
  using FinishFn = void (*)(const float*, const float*, const B*, const B*, T*, int64_t);
  static const auto finish = ERNIE_SELECT_ISA(FinishFn, finish_silu_and_mul);
  static const auto scale_row = ERNIE_SELECT_ISA(ScaleFn, scale_columns);
  const int64_t size = a.out.size(1);
  for_each_gated_product(
      product, a.x.size(0), size,
      [&](float* gate, float* up, int64_t acc_stride, int64_t row, int64_t rows, int64_t column,
          int64_t columns) {
        const float* scale = a.scale.template ptr<float>() + column;
        const B* gate_bias = a.bias ? a.bias->template ptr<B>() + column : nullptr;
        const B* up_bias = a.bias ? gate_bias + size : nullptr;
        for (int64_t r = 0; r < rows; ++r, gate += acc_stride, up += acc_stride) {
          scale_row(gate, scale, columns);
          scale_row(up, scale + size, columns);
          finish(gate, up, gate_bias, up_bias,
                 a.out.template ptr<T>() + (row + r) * a.out.step(0) + column, columns);
        }
      });
}

// Blocks of the product, scaled: wint8_linear and wint4_linear.
template <class Args, class Product>
void scaled_linear(const Args& a, const Product& product) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? scaled_linear_t<float, float>(a, product) : scaled_linear_t<bf16, float>(a, product);
  else
    f32_bias ? scaled_linear_t<float, bf16>(a, product) : scaled_linear_t<bf16, bf16>(a, product);
}

template <class Args, class Product>
void scaled_linear_silu_and_mul(const Args& a, const Product& product) {
  const bool f32_bias = a.bias && a.bias->dtype == DType::kF32;
  if (a.out.dtype == DType::kF32)
    f32_bias ? scaled_linear_silu_and_mul_t<float, float>(a, product)
             : scaled_linear_silu_and_mul_t<bf16, float>(a, product);
  else
    f32_bias ? scaled_linear_silu_and_mul_t<float, bf16>(a, product)
             : scaled_linear_silu_and_mul_t<bf16, bf16>(a, product);
}

}  // namespace ernie::cpu
