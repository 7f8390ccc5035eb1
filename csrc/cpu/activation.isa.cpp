// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/activation.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// v / (1 + e^-v) for v >= 0, and v e^v / (1 + e^v) below, where e^-v would overflow. With
// h = e^(-|v|/2) the product v h h is rounded to a denormal once, at the end. An infinity or NaN
// gives what the formula of the header gives: silu(-inf) is NaN.
inline F32 silu(F32 v) {
  const F32 zero = set(0.f);
  const F32 h = exp(mul(min(sub(zero, v), v), set(0.5f)));
  const F32 numerator = add(mul(mul(min(zero, v), h), h), max(zero, v));
  return div(numerator, fma(h, h, set(1.f)));
}

template <class T>
void silu_and_mul_row_t(const T* gate, const T* up, T* y, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    store_n(y + i, mul(silu(load_n(gate + i, m)), load_n(up + i, m)), m);
  });
}

}  // namespace

void silu_and_mul_row(const float* gate, const float* up, float* y, int64_t n) {
  silu_and_mul_row_t(gate, up, y, n);
}
void silu_and_mul_row(const bf16* gate, const bf16* up, bf16* y, int64_t n) {
  silu_and_mul_row_t(gate, up, y, n);
}

}  // namespace ernie::cpu::ERNIE_ISA
