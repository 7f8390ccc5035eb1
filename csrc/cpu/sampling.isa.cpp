// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/sampling.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr uint32_t kAllLanes = (uint32_t{1} << F32::kWidth) - 1;

// Zero in all but the first n lanes.
inline F32 first_lanes(F32 a, int64_t n) {
  if (n == F32::kWidth) return a;
  float lanes[F32::kWidth];
  store(lanes, a);
  return load_first(lanes, n);
}

}  // namespace

float largest_of(const float* logits, int64_t n) {
  constexpr int64_t W = F32::kWidth;
  // Two registers hide the latency of the maximum.
  F32 top0 = set(-INFINITY), top1 = top0;
  uint32_t ordered = kAllLanes;
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    const F32 a = load(logits + i), b = load(logits + i + W);
    ordered &= equal_mask(a, a) & equal_mask(b, b);
    top0 = max(top0, a);
    top1 = max(top1, b);
  }
  if (ordered != kAllLanes) return NAN;
  float top = max_of(max(top0, top1));
  for (; i < n; ++i) {
    if (logits[i] != logits[i]) return NAN;
    if (logits[i] > top) top = logits[i];
  }
  return top;
}

int64_t find_first(const float* logits, int64_t n, float value) {
  constexpr int64_t W = F32::kWidth;
  const F32 wanted = set(value);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const uint32_t hits = equal_mask(load(logits + i), wanted);
    if (hits != 0) return i + __builtin_ctz(hits);
  }
  while (i + 1 < n && logits[i] != value) ++i;
  return i;
}

int64_t gather_at_least(const float* logits, int64_t n, float bound, int32_t* indices) {
  int64_t count = 0;
  for_each_register(n, [&](int64_t i, int64_t m) {
    uint32_t hits = at_least_mask(load_n(logits + i, m), set(bound));
    hits &= (uint32_t{1} << m) - 1;
    for (; hits != 0; hits &= hits - 1)
      indices[count++] = static_cast<int32_t>(i + __builtin_ctz(hits));
  });
  return count;
}

float weigh(const float* logits, int64_t n, float largest, float temperature, float* weights) {
  const F32 top = set(largest), divisor = set(temperature);
  F32 total = set(0.f);
  for_each_register(n, [&](int64_t i, int64_t m) {
    const F32 weight = exp(div(sub(load_n(logits + i, m), top), divisor));
    if (weights != nullptr) store_n(weights + i, weight, m);
    total = add(total, first_lanes(weight, m));
  });
  return sum(total);
}

}  // namespace ernie::cpu::ERNIE_ISA
