// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/rope.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// A register holds whole pairs; so does a tail, as head_dim is even.
template <class T>
void rotate_heads_t(T* x, const float* table, int64_t num_heads, int64_t head_step,
                    int64_t head_dim) {
  for_each_register(head_dim, [&](int64_t i, int64_t n) {
    const F32 angle = load_n(table + i, n);
    const F32 cosine = firsts(angle), sine = seconds(angle);
    for (int64_t h = 0; h < num_heads; ++h) {
      T* pairs = x + h * head_step + i;
      const F32 a = load_n(pairs, n);
      store_n(pairs, sub_add(mul(a, cosine), mul(exchanged(a), sine)), n);
    }
  });
}

template <class T>
void rotate_halves_t(T* x, const float* table, int64_t num_heads, int64_t head_step,
                     int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for_each_register(half, [&](int64_t i, int64_t n) {
    const F32 cosine = load_n(table + i, n), sine = load_n(table + half + i, n);
    for (int64_t h = 0; h < num_heads; ++h) {
      T* first = x + h * head_step + i;
      T* second = first + half;
      const F32 a = load_n(first, n), b = load_n(second, n);
      store_n(first, sub(mul(a, cosine), mul(b, sine)), n);
      store_n(second, add(mul(b, cosine), mul(a, sine)), n);
    }
  });
}

}  // namespace

void rotate_heads(float* x, const float* table, int64_t num_heads, int64_t head_step,
                  int64_t head_dim) {
  rotate_heads_t(x, table, num_heads, head_step, head_dim);
}
void rotate_heads(bf16* x, const float* table, int64_t num_heads, int64_t head_step,
                  int64_t head_dim) {
  rotate_heads_t(x, table, num_heads, head_step, head_dim);
}
void rotate_halves(float* x, const float* table, int64_t num_heads, int64_t head_step,
                   int64_t head_dim) {
  rotate_halves_t(x, table, num_heads, head_step, head_dim);
}
void rotate_halves(bf16* x, const float* table, int64_t num_heads, int64_t head_step,
                   int64_t head_dim) {
  rotate_halves_t(x, table, num_heads, head_step, head_dim);
}

}  // namespace ernie::cpu::ERNIE_ISA
