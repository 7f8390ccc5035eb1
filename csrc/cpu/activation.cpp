#include "ops/activation.h"

#include <algorithm>

#include "core/checked.h"
#include "core/parallel.h"
#include "cpu/activation.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 4096;

// Rows are cut into pieces, so that a single token keeps all threads busy.
template <class T>
void silu_and_mul_t(const SiluAndMulArgs& a) {
  using RowFn = void (*)(const T*, const T*, T*, int64_t);
  static const auto row = ERNIE_SELECT_ISA(RowFn, silu_and_mul_row);
  const int64_t n = a.out.size(1), pieces = ceil_div(n, kElementsPerChunk);
  parallel_for(a.out.size(0) * pieces, ceil_div(kElementsPerChunk, n),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t t = i / pieces, first = i % pieces * kElementsPerChunk;
                   const T* gate = a.x.ptr<T>() + t * a.x.step(0) + first;
                   row(gate, gate + n, a.out.ptr<T>() + t * a.out.step(0) + first,
                       std::min(kElementsPerChunk, n - first));
                 }
               });
}

}  // namespace

void silu_and_mul(const SiluAndMulArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? silu_and_mul_t<bf16>(a) : silu_and_mul_t<float>(a);
}

}  // namespace ernie::cpu
