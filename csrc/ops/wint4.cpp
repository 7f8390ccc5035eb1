#include "ops/wint4.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/linear_checks.h"

namespace ernie {
namespace {

// `row_bytes` of a plain row: two columns each.
void check_packed(const Check& check, const char* name, const TensorView& w, int64_t out_features,
                  int64_t row_bytes) {
  check.shape(name, w,
              {panels_of(out_features),
               {"ceil(in_features / 8)", ceil_div(row_bytes, 4)},
               {"16", kPanelRows},
               {"4", 4}});
}

void check_weight(const Check& check, const char* name, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  const int64_t row_bytes = ceil_div(in_features, 2);
  check.dtype(name, w, {DType::kU8});
  if (w.rank == 2)
    check.shape(name, w, {{"out_features", out_features}, {"ceil(in_features / 2)", row_bytes}});
  else
    check_packed(check, name, w, out_features, row_bytes);
  check.contiguous(name, w);
}

// Operands of a product, all but `out`.
template <class Args>
void check_operands(const Check& check, const Args& a, int64_t out_features, const Stream& stream) {
  check_weight(check, "weight", a.weight, out_features, a.x.size(1));
  check_scale(check, a.scale, out_features);
  check_bias(check, a.bias, out_features, {DType::kF32, DType::kBF16}, stream);
  check.device(stream.device,
               {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}, {"scale", &a.scale}});
  check_apart(check, "out", a.out, a);
}

}  // namespace

void wint4_linear(const Wint4LinearArgs& a, const Stream& stream) {
  const Check check("wint4_linear");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t out_features = a.out.size(1);
  check_rows(check, "out", a.out, a.x.size(0), "out_features", out_features);
  check.dtype("out", a.out, {a.x.dtype, DType::kF32});
  check_operands(check, a, out_features, stream);
  if (a.out.numel() == 0) return;
  dispatch<Wint4LinearArgs>("wint4_linear", {&cpu::wint4_linear, nullptr}, a, stream);
}

void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs& a, const Stream& stream) {
  const Check check("wint4_linear_silu_and_mul");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t intermediate_size = a.out.size(1);
  check_rows(check, "out", a.out, a.x.size(0), "intermediate_size", intermediate_size);
  check.dtype("out", a.out, {a.x.dtype});
  check_operands(check, a, 2 * intermediate_size, stream);
  if (a.out.numel() == 0) return;
  dispatch<Wint4LinearSiluAndMulArgs>("wint4_linear_silu_and_mul",
                                      {&cpu::wint4_linear_silu_and_mul, nullptr}, a, stream);
}

void wint4_quantize(const Wint4QuantizeArgs& a, const Stream& stream) {
  const Check check("wint4_quantize");
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kF32, DType::kBF16});
  check.inner_contiguous("weight", a.weight);
  const int64_t out_features = a.weight.size(0);
  check_weight(check, "out", a.out, out_features, a.weight.size(1));
  check.writable("out", a.out);
  check_scale(check, a.scale, out_features);
  check.writable("scale", a.scale);
  check.disjoint("out", a.out, "weight", a.weight);
  check.disjoint("scale", a.scale, "weight", a.weight);
  check.disjoint("out", a.out, "scale", a.scale);
  check.device(stream.device, {{"out", &a.out}, {"scale", &a.scale}, {"weight", &a.weight}});
  if (out_features == 0) return;
  dispatch<Wint4QuantizeArgs>("wint4_quantize", {&cpu::wint4_quantize, nullptr}, a, stream);
}

void wint4_pack(const Wint4PackArgs& a, const Stream& stream) {
  const Check check("wint4_pack");
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kU8});
  check.inner_contiguous("weight", a.weight);
  check_packed(check, "out", a.out, a.weight.size(0), a.weight.size(1));
  check.dtype("out", a.out, {DType::kU8});
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"out", &a.out}, {"weight", &a.weight}});
  if (a.out.numel() == 0) return;
  dispatch<Wint4PackArgs>("wint4_pack", {&cpu::wint4_pack, nullptr}, a, stream);
}

}  // namespace ernie
