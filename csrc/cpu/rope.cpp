#include "ops/rope.h"

#include <cmath>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/checked.h"
#include "core/parallel.h"
#include "cpu/rope.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kAnglesPerChunk = 256;
constexpr int64_t kElementsPerChunk = 8192;

void check_positions(const TensorView& positions) {
  for (int64_t t = 0; t < positions.size(0); ++t)
    if (positions.ptr<int64_t>()[t] < 0)
      Check("rope_table")
          .fail("positions", "values >= 0",
                std::to_string(positions.ptr<int64_t>()[t]) + " at token " + std::to_string(t));
}

template <class T>
void rope_t(const RopeArgs& a) {
  using RotateFn = void (*)(T*, const float*, int64_t, int64_t, int64_t);
  static const auto rotate = ERNIE_SELECT_ISA(RotateFn, rotate_heads);
  const int64_t head_dim = a.query.size(2);
  const int64_t elements = (a.query.size(1) + a.key.size(1)) * head_dim;
  parallel_for(a.query.size(0), ceil_div(kElementsPerChunk, elements),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   for (const TensorView* x : {&a.query, &a.key})
                     rotate(x->ptr<T>() + t * x->step(0), a.table.ptr<float>() + t * head_dim,
                            x->size(1), x->step(1), head_dim);
               });
}

}  // namespace

void rope_table(const RopeTableArgs& a, const Stream&) {
  check_positions(a.positions);
  const int64_t pairs = a.out.size(1) / 2;
  std::vector<float> frequency(pairs);
  for (int64_t i = 0; i < pairs; ++i)
    frequency[i] = static_cast<float>(std::pow(
        static_cast<double>(a.theta), -static_cast<double>(i) / static_cast<double>(pairs)));

  parallel_for(a.positions.size(0), ceil_div(kAnglesPerChunk, pairs),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const auto position = static_cast<float>(a.positions.ptr<int64_t>()[t]);
                   float* row = a.out.ptr<float>() + t * 2 * pairs;
                   for (int64_t i = 0; i < pairs; ++i) {
                     // In double, and rounded once: both backends and all tiers agree.
                     const double angle = position * frequency[i];
                     row[2 * i] = static_cast<float>(std::cos(angle));
                     row[2 * i + 1] = static_cast<float>(std::sin(angle));
                   }
                 }
               });
}

void rope(const RopeArgs& a, const Stream&) {
  a.query.dtype == DType::kBF16 ? rope_t<bf16>(a) : rope_t<float>(a);
}

}  // namespace ernie::cpu
