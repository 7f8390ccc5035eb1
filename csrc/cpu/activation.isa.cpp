// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/activation.isa.h"

#include "cpu/activation_functions.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

template <class T>
void silu_and_mul_row_t(const T* gate, const T* up, T* y, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    store_n(y + i, mul(silu(load_n(gate + i, m)), load_n(up + i, m)), m);
  });
}

template <class T>
void gelu_row_t(const T* x, T* y, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) { store_n(y + i, gelu(load_n(x + i, m)), m); });
}

template <class T>
void quick_gelu_row_t(const T* x, T* y, int64_t n) {
  for_each_register(n,
                    [&](int64_t i, int64_t m) { store_n(y + i, quick_gelu(load_n(x + i, m)), m); });
}

}  // namespace

void silu_and_mul_row(const float* gate, const float* up, float* y, int64_t n) {
  silu_and_mul_row_t(gate, up, y, n);
}
void silu_and_mul_row(const bf16* gate, const bf16* up, bf16* y, int64_t n) {
  silu_and_mul_row_t(gate, up, y, n);
}

void gelu_row(const float* x, float* y, int64_t n) { gelu_row_t(x, y, n); }
void gelu_row(const bf16* x, bf16* y, int64_t n) { gelu_row_t(x, y, n); }
void quick_gelu_row(const float* x, float* y, int64_t n) { quick_gelu_row_t(x, y, n); }
void quick_gelu_row(const bf16* x, bf16* y, int64_t n) { quick_gelu_row_t(x, y, n); }

}  // namespace ernie::cpu::ERNIE_ISA
