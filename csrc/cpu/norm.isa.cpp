// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/norm.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// Sums the row: add_to(sum, x) gives sum and the term of x. Two accumulators hide the latency of
// the addition; the terms of a tail are added one by one.
template <class T, class F>
inline float sum_row(const T* x, int64_t n, const F& add_to) {
  constexpr int64_t W = F32::kWidth;
  int64_t i = 0;
  F32 acc0 = set(0.f), acc1 = set(0.f);
  for (; i + 2 * W <= n; i += 2 * W) {
    acc0 = add_to(acc0, load(x + i));
    acc1 = add_to(acc1, load(x + i + W));
  }
  float total = sum(acc0) + sum(acc1);
  for_each_register(n - i, [&](int64_t j, int64_t m) {
    float terms[W];
    store(terms, add_to(set(0.f), load_n(x + i + j, m)));
    for (int64_t k = 0; k < m; ++k) total += terms[k];
  });
  return total;
}

// A row is read again for every pass and stays in L1.
template <class T>
void rms_norm_row_t(const T* x, const T* w, T* y, int64_t n, float eps) {
  const float sum_sq = sum_row(x, n, [](F32 total, F32 v) { return fma(v, v, total); });
  const F32 scale = set(1.f / sqrtf(sum_sq / static_cast<float>(n) + eps));
  for_each_register(n, [&](int64_t j, int64_t m) {
    const F32 normed = round_to(mul(load_n(x + j, m), scale), x);
    store_n(y + j, mul(normed, load_n(w + j, m)), m);
  });
}

template <class T>
void layer_norm_row_t(const T* x, const T* w, const T* b, T* y, int64_t n, float eps) {
  const auto count = static_cast<float>(n);
  const F32 mean = set(sum_row(x, n, [](F32 total, F32 v) { return add(total, v); }) / count);
  const float sum_sq = sum_row(x, n, [&](F32 total, F32 v) {
    const F32 centred = sub(v, mean);
    return fma(centred, centred, total);
  });
  const F32 scale = set(1.f / sqrtf(sum_sq / count + eps));
  for_each_register(n, [&](int64_t j, int64_t m) {
    const F32 normed = mul(sub(load_n(x + j, m), mean), scale);
    store_n(y + j, fma(normed, load_n(w + j, m), load_n(b + j, m)), m);
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
void layer_norm_row(const float* x, const float* w, const float* b, float* y, int64_t n,
                    float eps) {
  layer_norm_row_t(x, w, b, y, n, eps);
}
void layer_norm_row(const bf16* x, const bf16* w, const bf16* b, bf16* y, int64_t n, float eps) {
  layer_norm_row_t(x, w, b, y, n, eps);
}
void add_row(const float* x, float* residual, int64_t n) { add_row_t(x, residual, n); }
void add_row(const bf16* x, bf16* residual, int64_t n) { add_row_t(x, residual, n); }

}  // namespace ernie::cpu::ERNIE_ISA
