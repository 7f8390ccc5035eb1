// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/norm.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

template <class T>
void rms_norm_row_t(const T* x, const T* w, T* y, int64_t n, float eps) {
  constexpr int64_t W = F32::kWidth;
  int64_t i = 0;

  // Two accumulators hide the fma latency; the row is read twice and stays in L1.
  F32 acc0 = set(0.f), acc1 = set(0.f);
  for (; i + 2 * W <= n; i += 2 * W) {
    const F32 a = load(x + i), b = load(x + i + W);
    acc0 = fma(a, a, acc0);
    acc1 = fma(b, b, acc1);
  }
  float sum_sq = sum(acc0) + sum(acc1);
  for (; i < n; ++i) sum_sq += load1(x + i) * load1(x + i);

  const F32 scale = set(1.f / sqrtf(sum_sq / static_cast<float>(n) + eps));
  for_each_register(n, [&](int64_t j, int64_t m) {
    const F32 normed = round_to(mul(load_n(x + j, m), scale), x);
    store_n(y + j, mul(normed, load_n(w + j, m)), m);
  });
}

template <class T>
void add_row_t(const T* x, T* residual, int64_t n) {
  for_each_register(n, [&](int64_t j, int64_t m) {
    store_n(residual + j, add(load_n(residual + j, m), load_n(x + j, m)), m);
  });
}

}  // namespace

void rms_norm_row(const float* x, const float* w, float* y, int64_t n, float eps) {
  rms_norm_row_t(x, w, y, n, eps);
}
void rms_norm_row(const bf16* x, const bf16* w, bf16* y, int64_t n, float eps) {
  rms_norm_row_t(x, w, y, n, eps);
}
void add_row(const float* x, float* residual, int64_t n) { add_row_t(x, residual, n); }
void add_row(const bf16* x, bf16* residual, int64_t n) { add_row_t(x, residual, n); }

}  // namespace ernie::cpu::ERNIE_ISA
