// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/moe.isa.h"

#include "cpu/simd.isa.h"
#include "ops/moe_core.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// Columns that share one look at weights and rows, so that loads of several rows are in flight.
constexpr int64_t kRegisters = 4;

template <class T>
void combine_row(const T* x, int64_t x_stride, const int32_t* rows, const float* weights,
                 int64_t top_k, const T* shared, T* out, int64_t n) {
  constexpr int64_t W = F32::kWidth;
  int64_t i = 0;
  for (; i + kRegisters * W <= n; i += kRegisters * W) {
    F32 acc[kRegisters];
    for (F32& a : acc) a = set(0.f);
    for (int64_t j = 0; j < top_k; ++j) {
      const T* row = x + rows[j] * x_stride + i;
      const F32 weight = set(weights[j]);
      for (int r = 0; r < kRegisters; ++r) acc[r] = add(acc[r], mul(weight, load(row + r * W)));
    }
    for (int r = 0; r < kRegisters; ++r) {
      if (shared != nullptr) acc[r] = add(acc[r], load(shared + i + r * W));
      store(out + i + r * W, acc[r]);
    }
  }
  for_each_register(n - i, [&](int64_t first, int64_t m) {
    F32 acc = set(0.f);
    for (int64_t j = 0; j < top_k; ++j)
      acc = add(acc, mul(set(weights[j]), load_n(x + rows[j] * x_stride + i + first, m)));
    if (shared != nullptr) acc = add(acc, load_n(shared + i + first, m));
    store_n(out + i + first, acc, m);
  });
}

}  // namespace

float moe_sum(const float* values, int64_t n) {
  float partial[kMoePartialSums] = {};
  int64_t i = 0;
  for (; i + kMoePartialSums <= n; i += kMoePartialSums)
    for (int64_t l = 0; l < kMoePartialSums; ++l) partial[l] += values[i + l];
  for (int64_t l = 0; i + l < n; ++l) partial[l] += values[i + l];
  for (int64_t half = kMoePartialSums / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) partial[l] += partial[l + half];
  return partial[0];
}

// Plain loops, which the compiler turns into the tier's vectors: what they compute is shared with
// CUDA, operation by operation.
bool moe_scores_row(const float* logits, const float* bias, int64_t n, float* p, float* scores) {
  int32_t finite = 1;
  for (int64_t i = 0; i < n; ++i)
    finite &= int32_t{moe_is_finite(logits[i])} & int32_t{moe_is_finite(bias[i])};
  if (finite == 0) return false;

  constexpr int64_t W = F32::kWidth;
  float largest = logits[0];
  int64_t first = 0;
  if (n >= W) {
    F32 top = load(logits);
    for (first = W; first + W <= n; first += W) top = max(top, load(logits + first));
    largest = max_of(top);
  }
  for (; first < n; ++first) largest = logits[first] > largest ? logits[first] : largest;

  for (int64_t i = 0; i < n; ++i) p[i] = moe_exp(logits[i] - largest);
  const float total = moe_sum(p, n);
  for (int64_t i = 0; i < n; ++i) p[i] = p[i] / total;
  for (int64_t i = 0; i < n; ++i) scores[i] = p[i] + bias[i];
  return true;
}

void moe_combine_row(const float* x, int64_t x_stride, const int32_t* rows, const float* weights,
                     int64_t top_k, const float* shared, float* out, int64_t n) {
  combine_row(x, x_stride, rows, weights, top_k, shared, out, n);
}
void moe_combine_row(const bf16* x, int64_t x_stride, const int32_t* rows, const float* weights,
                     int64_t top_k, const bf16* shared, bf16* out, int64_t n) {
  combine_row(x, x_stride, rows, weights, top_k, shared, out, n);
}

}  // namespace ernie::cpu::ERNIE_ISA
