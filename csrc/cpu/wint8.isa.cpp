// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/wint8.isa.h"

#include "cpu/gemm.isa.h"
#include "cpu/quantize_activations.isa.h"
#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr int64_t kQuadBytes = 4 * kPanelRows;

}  // namespace

void wint8_expand(const int8_t* w, int64_t k, bf16* out) {
  for (int64_t c = 0; c < k; c += 2)
    for (int64_t r = 0; r < kPanelRows; ++r)
      for (int64_t i = 0; i < 2; ++i)
        *out++ = to_bf16(static_cast<float>(w[c / 4 * kQuadBytes + 4 * r + c % 4 + i]));
}

void wint8_f32(const Wint8Block& b) {
  constexpr int64_t kColumns = 64;
  bf16 expanded[kColumns * kPanelRows];
  for (int64_t p = 0; p < b.panels; ++p)
    for (int64_t k = 0; k < b.k || k == 0; k += kColumns) {
      const int64_t columns = b.k - k < kColumns ? b.k - k : kColumns;
      wint8_expand(b.w + p * b.w_stride + k * kPanelRows, columns, expanded);
      gemm_f32_bf16({.x = static_cast<const float*>(b.x) + k,
                     .x_stride = b.x_stride,
                     .rows = b.rows,
                     .w = expanded,
                     .w_stride = 0,
                     .panels = 1,
                     .k = columns,
                     .acc = b.acc + p * kPanelRows,
                     .acc_stride = b.acc_stride,
                     .accumulate = k > 0});
    }
}

void wint8_bf16(const Wint8Block& b) {
  constexpr int64_t kColumns = 64;
  bf16 expanded[kColumns * kPanelRows];
  for (int64_t p = 0; p < b.panels; ++p)
    for (int64_t k = 0; k < b.k || k == 0; k += kColumns) {
      const int64_t columns = b.k - k < kColumns ? b.k - k : kColumns;
      wint8_expand(b.w + p * b.w_stride + k * kPanelRows, columns, expanded);
      gemm_bf16_bf16({.x = static_cast<const bf16*>(b.x) + k,
                      .x_stride = b.x_stride,
                      .rows = b.rows,
                      .w = expanded,
                      .w_stride = 0,
                      .panels = 1,
                      .k = columns,
                      .acc = b.acc + p * kPanelRows,
                      .acc_stride = b.acc_stride,
                      .accumulate = k > 0});
    }
}

void wint8_int8(const Wint8ActivationBlock& b) {
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t p = 0; p < b.panels; ++p) {
      float* acc = b.acc + r * b.acc_stride + p * kPanelRows;
      for (int64_t i = 0; i < kPanelRows; ++i) acc[i] = 0.f;
      for (int64_t g = 0; g < b.groups; ++g) {
        int32_t total[kPanelRows] = {};
        const int64_t last = 16 * (g + 1) < b.quads ? 16 * (g + 1) : b.quads;
        for (int64_t j = 16 * g; j < last; ++j)
          for (int64_t n = 0; n < kPanelRows; ++n)
            for (int64_t i = 0; i < 4; ++i)
              total[n] += b.x[r * kActivationGroup * b.groups + 4 * j + i] *
                          b.w[p * b.w_stride + j * kQuadBytes + 4 * n + i];
        const float scale = b.x_scale[r * b.groups + g];
        for (int64_t n = 0; n < kPanelRows; ++n)
          acc[n] = fmaf(scale, static_cast<float>(total[n]), acc[n]);
      }
    }
}

void scale_columns(float* acc, const float* scale, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    store_n(acc + i, mul(load_n(acc + i, m), load_n(scale + i, m)), m);
  });
}

}  // namespace ernie::cpu::ERNIE_ISA
