#include "ops/grouped_gemm.h"

#include <cstring>
#include <string>

#include "core/check.h"
#include "core/memory.h"
#include "ops/gemm.h"
#include "ops/wint4.h"
#include "ops/wint8.h"

namespace ernie::cpu {
namespace {

void check_offsets(const char* op, const TensorView& offsets, int64_t num_rows) {
  const int64_t* o = offsets.ptr<int64_t>();
  const int64_t num_experts = offsets.size(0) - 1;
  int64_t before = 0;
  for (int64_t e = 0; e <= num_experts; ++e) {
    const bool good = e == 0 ? o[e] == 0 : e == num_experts ? o[e] == num_rows : o[e] >= before;
    if (!good || o[e] < before)
      Check(op).fail("expert_offsets", "rows ascending from 0 to " + std::to_string(num_rows),
                     std::to_string(o[e]) + " at " + std::to_string(e));
    before = o[e];
  }
}

void check_source_rows(const char* op, const TensorView& rows, int64_t num_tokens) {
  for (int64_t i = 0; i < rows.size(0); ++i)
    if (rows.ptr<int32_t>()[i] < 0 || rows.ptr<int32_t>()[i] >= num_tokens)
      Check(op).fail("source_rows", "tokens from 0 to " + std::to_string(num_tokens - 1),
                     std::to_string(rows.ptr<int32_t>()[i]) + " at " + std::to_string(i));
}

TensorView slice(const TensorView& t, int64_t index) {
  TensorView s = t;
  s.data = t.ptr<char>() + index * t.step(0) * size_of(t.dtype);
  for (int d = 1; d < t.rank; ++d) {
    s.shape[d - 1] = t.shape[d];
    s.stride[d - 1] = t.stride[d];
  }
  --s.rank;
  return s;
}

TensorView rows_of(const TensorView& t, int64_t begin, int64_t end) {
  TensorView s = t;
  s.data = t.ptr<char>() + begin * t.step(0) * size_of(t.dtype);
  s.shape[0] = end - begin;
  return s;
}

// Calls f(x, out, weight, scale) for each expert that has rows.
template <class Args, class F>
void for_each_expert(const char* op, const Args& a, const F& f) {
  check_offsets(op, a.expert_offsets, a.out.size(0));
  if (a.source_rows) check_source_rows(op, *a.source_rows, a.x.size(0));
  if (a.out.numel() == 0) return;
  const int64_t* offsets = a.expert_offsets.template ptr<int64_t>();
  const int64_t itemsize = size_of(a.x.dtype), k = a.x.size(1);
  for (int64_t e = 0; e + 1 < a.expert_offsets.size(0); ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    if (begin == end) continue;
    TensorView x = a.x;
    if (a.source_rows) {
      x.data = scratch(ScratchSlot::kSplits, (end - begin) * k * itemsize);
      x.shape[0] = end - begin;
      x.stride[0] = k;
      for (int64_t i = begin; i < end; ++i)
        std::memcpy(x.ptr<char>() + (i - begin) * k * itemsize,
                    a.x.template ptr<char>() +
                        a.source_rows->template ptr<int32_t>()[i] * a.x.step(0) * itemsize,
                    k * itemsize);
    } else {
      x = rows_of(a.x, begin, end);
    }
    f(x, rows_of(a.out, begin, end), slice(a.weight.weight, e),
      a.weight.scale ? slice(*a.weight.scale, e) : TensorView{});
  }
}

}  // namespace

void grouped_linear(const GroupedLinearArgs& a, const Stream& stream) {
  for_each_expert("grouped_linear", a,
                  [&](const TensorView& x, const TensorView& out, const TensorView& weight,
                      const TensorView& scale) {
                    if (weight.dtype == DType::kI8)
                      cpu::wint8_linear({out, x, weight, scale, std::nullopt, a.int8_activations},
                                        stream);
                    else if (weight.dtype == DType::kU8)
                      cpu::wint4_linear({out, x, weight, scale, std::nullopt}, stream);
                    else
                      cpu::linear({out, x, weight, std::nullopt}, stream);
                  });
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream& stream) {
  for_each_expert(
      "grouped_linear_silu_and_mul", a,
      [&](const TensorView& x, const TensorView& out, const TensorView& weight,
          const TensorView& scale) {
        if (weight.dtype == DType::kI8)
          cpu::wint8_linear_silu_and_mul(
              {out, x, weight, scale, std::nullopt, std::nullopt, a.int8_activations}, stream);
        else if (weight.dtype == DType::kU8)
          cpu::wint4_linear_silu_and_mul({out, x, weight, scale, std::nullopt}, stream);
        else
          cpu::linear_silu_and_mul({out, x, weight, std::nullopt, std::nullopt}, stream);
      });
}

}  // namespace ernie::cpu
