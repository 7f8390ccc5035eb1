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

void check_positions(const RopeAnglesArgs& a) {
  const int64_t num_tokens = a.positions.size(-1);
  const int64_t* position = a.positions.ptr<int64_t>();
  for (int64_t i = 0; i < a.positions.numel(); ++i)
    if (position[i] < 0)
      Check(a.op).fail(
          "positions", "values >= 0",
          std::to_string(position[i]) + " at token " + std::to_string(i % num_tokens) +
              (a.positions.rank == 1 ? "" : " of row " + std::to_string(i / num_tokens)));
}

// rotate(x, table, num_heads, head_step, head_dim) turns the heads of one token.
template <class T, class Rotate>
void rotate_tokens(const RopeArgs& a, const Rotate& rotate) {
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

template <class T>
using RotateFn = void (*)(T*, const float*, int64_t, int64_t, int64_t);

template <class T>
void rope_t(const RopeArgs& a) {
  static const auto rotate = ERNIE_SELECT_ISA(RotateFn<T>, rotate_heads);
  rotate_tokens<T>(a, rotate);
}

template <class T>
void rope_2d_t(const RopeArgs& a) {
  static const auto rotate = ERNIE_SELECT_ISA(RotateFn<T>, rotate_halves);
  rotate_tokens<T>(a, rotate);
}

}  // namespace

void rope_angles(const RopeAnglesArgs& a, const Stream&) {
  check_positions(a);
  struct Turn {
    int64_t axis;
    float frequency;
  };
  const RopeScheme& scheme = a.scheme;
  std::vector<Turn> turns(scheme.pairs);
  for (int64_t i = 0; i < scheme.pairs; ++i) {
    const RopePair pair = rope_pair(scheme, i);
    const double exponent = -static_cast<double>(pair.step) / static_cast<double>(pair.steps);
    turns[i] = {pair.axis, static_cast<float>(std::pow(static_cast<double>(a.theta), exponent))};
  }

  const int64_t num_tokens = a.out.size(0);
  const auto fill_row = [&](int64_t t) {
    const int64_t* position = a.positions.ptr<int64_t>() + t;
    float* row = a.out.ptr<float>() + t * 2 * scheme.pairs;
    for (int64_t i = 0; i < scheme.pairs; ++i) {
      const auto [axis, frequency] = turns[i];
      // In double, and rounded once: both backends and all tiers agree.
      const double angle = static_cast<float>(position[axis * num_tokens]) * frequency;
      row[rope_cosine(scheme, i)] = static_cast<float>(std::cos(angle));
      row[rope_sine(scheme, i)] = static_cast<float>(std::sin(angle));
    }
  };
  parallel_for(num_tokens, ceil_div(kAnglesPerChunk, scheme.pairs),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) fill_row(t);
               });
}

void rope(const RopeArgs& a, const Stream&) {
  a.query.dtype == DType::kBF16 ? rope_t<bf16>(a) : rope_t<float>(a);
}

void rope_2d(const RopeArgs& a, const Stream&) {
  a.query.dtype == DType::kBF16 ? rope_2d_t<bf16>(a) : rope_2d_t<float>(a);
}

}  // namespace ernie::cpu
