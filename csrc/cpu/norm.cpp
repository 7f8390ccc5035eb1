#include "ops/norm.h"

#include "core/parallel.h"
#include "cpu/norm.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kRowsPerChunk = 8;

template <class T>
T* row_of(const TensorView& t, int64_t row) {
  return t.ptr<T>() + row * t.step(0);
}

// The norm that has a bias is layer_norm.
template <class T, class Args>
void norm_row(const Args& a, const T* x, T* y) {
  const T* weight = a.weight.template ptr<T>();
  if constexpr (requires { a.bias; }) {
    using NormFn = void (*)(const T*, const T*, const T*, T*, int64_t, float);
    static const auto norm = ERNIE_SELECT_ISA(NormFn, layer_norm_row);
    norm(x, weight, a.bias.template ptr<T>(), y, a.x.size(1), a.eps);
  } else {
    using NormFn = void (*)(const T*, const T*, T*, int64_t, float);
    static const auto norm = ERNIE_SELECT_ISA(NormFn, rms_norm_row);
    norm(x, weight, y, a.x.size(1), a.eps);
  }
}

template <class T, class Args>
void norm_rows(const Args& a) {
  using AddFn = void (*)(const T*, T*, int64_t);
  static const auto add = ERNIE_SELECT_ISA(AddFn, add_row);
  parallel_for(a.x.size(0), kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* x = row_of<T>(a.x, t);
      if constexpr (requires { a.residual; }) {
        T* residual = row_of<T>(a.residual, t);
        add(x, residual, a.x.size(1));
        x = residual;
      }
      norm_row(a, x, row_of<T>(a.out, t));
    }
  });
}

template <class Args>
void norm(const Args& a) {
  a.x.dtype == DType::kBF16 ? norm_rows<bf16>(a) : norm_rows<float>(a);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream&) { norm(a); }
void add_rms_norm(const AddRmsNormArgs& a, const Stream&) { norm(a); }
void layer_norm(const LayerNormArgs& a, const Stream&) { norm(a); }
void add_layer_norm(const AddLayerNormArgs& a, const Stream&) { norm(a); }

}  // namespace ernie::cpu
