#include "ops/norm.h"

#include "core/parallel.h"
#include "cpu/norm.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kRowsPerChunk = 8;

template <class T>
using NormFn = void (*)(const T*, const T*, T*, int64_t, float);

template <class T>
T* row_of(const TensorView& t, int64_t row) {
  return t.ptr<T>() + row * t.step(0);
}

template <class T>
void rms_norm_t(const RmsNormArgs& a) {
  static const auto norm = ERNIE_SELECT_ISA(NormFn<T>, rms_norm_row);
  parallel_for(a.x.size(0), kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      norm(row_of<T>(a.x, t), a.weight.ptr<T>(), row_of<T>(a.out, t), a.x.size(1), a.eps);
  });
}

template <class T>
void add_rms_norm_t(const AddRmsNormArgs& a) {
  using AddFn = void (*)(const T*, T*, int64_t);
  static const auto add = ERNIE_SELECT_ISA(AddFn, add_row);
  static const auto norm = ERNIE_SELECT_ISA(NormFn<T>, rms_norm_row);
  parallel_for(a.x.size(0), kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      T* residual = row_of<T>(a.residual, t);
      add(row_of<T>(a.x, t), residual, a.x.size(1));
      norm(residual, a.weight.ptr<T>(), row_of<T>(a.out, t), a.x.size(1), a.eps);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? rms_norm_t<bf16>(a) : rms_norm_t<float>(a);
}

void add_rms_norm(const AddRmsNormArgs& a, const Stream&) {
  a.x.dtype == DType::kBF16 ? add_rms_norm_t<bf16>(a) : add_rms_norm_t<float>(a);
}

}  // namespace ernie::cpu
