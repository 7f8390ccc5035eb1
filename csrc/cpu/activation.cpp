#include "ops/activation.h"

#include <algorithm>

#include "core/checked.h"
#include "core/parallel.h"
#include "cpu/activation.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 4096;

// Calls row(x, y, count) for all of out. Rows are cut into pieces, so that a single token keeps all
// threads busy; x and y begin at the same column of their rows.
template <class T, class Args, class F>
void for_each_piece(const Args& a, const F& row) {
  const int64_t n = a.out.size(1), pieces = ceil_div(n, kElementsPerChunk);
  parallel_for(a.out.size(0) * pieces, ceil_div(kElementsPerChunk, n),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t t = i / pieces, first = i % pieces * kElementsPerChunk;
                   row(a.x.template ptr<T>() + t * a.x.step(0) + first,
                       a.out.template ptr<T>() + t * a.out.step(0) + first,
                       std::min(kElementsPerChunk, n - first));
                 }
               });
}

template <class T>
void silu_and_mul_t(const SiluAndMulArgs& a) {
  using RowFn = void (*)(const T*, const T*, T*, int64_t);
  static const auto row = ERNIE_SELECT_ISA(RowFn, silu_and_mul_row);
  for_each_piece<T>(
      a, [up = a.out.size(1)](const T* gate, T* y, int64_t n) { row(gate, gate + up, y, n); });
}

template <class T>
using RowFn = void (*)(const T*, T*, int64_t);

template <class T>
void gelu_t(const ActivationArgs& a) {
  static const auto row = ERNIE_SELECT_ISA(RowFn<T>, gelu_row);
  for_each_piece<T>(a, row);
}

template <class T>
void quick_gelu_t(const ActivationArgs& a) {
  static const auto row = ERNIE_SELECT_ISA(RowFn<T>, quick_gelu_row);
  for_each_piece<T>(a, row);
}

}  // namespace

void silu_and_mul(const SiluAndMulArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? silu_and_mul_t<bf16>(a) : silu_and_mul_t<float>(a);
}

void gelu(const ActivationArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? gelu_t<bf16>(a) : gelu_t<float>(a);
}

void quick_gelu(const ActivationArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? quick_gelu_t<bf16>(a) : quick_gelu_t<float>(a);
}

}  // namespace ernie::cpu
