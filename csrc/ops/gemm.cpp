#include "ops/gemm.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

constexpr int64_t kPanelRows = 16;

void check_weight(const Check& check, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  check.dtype("weight", w, {DType::kF32, DType::kBF16});
  const int64_t panels = ceil_div(out_features, kPanelRows);
  if (w.rank == 2)
    check.shape("weight", w, {{"out_features", out_features}, {"in_features", in_features}});
  else if (w.dtype == DType::kBF16)
    check.shape("weight", w,
                {{"ceil(out_features / 16)", panels},
                 {"ceil(in_features / 2)", ceil_div(in_features, 2)},
                 {"16", kPanelRows},
                 {"2", 2}});
  else
    check.shape(
        "weight", w,
        {{"ceil(out_features / 16)", panels}, {"in_features", in_features}, {"16", kPanelRows}});
  check.contiguous("weight", w);
}

}  // namespace

void linear(const LinearArgs& a, const Stream& stream) {
  const Check check("linear");
  check.rank("x", a.x, 2);
  check.dtype("x", a.x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", a.x);
  check.rank("out", a.out, 2);
  const int64_t num_tokens = a.x.size(0), out_features = a.out.size(1);
  check.shape("out", a.out, {{"num_tokens", num_tokens}, {"out_features", out_features}});
  check.dtype("out", a.out, {a.x.dtype, DType::kF32});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check_weight(check, a.weight, out_features, a.x.size(1));
  if (a.weight.dtype == DType::kF32) check.dtype("x", a.x, {DType::kF32});
  check.disjoint("out", a.out, "x", a.x);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}});
  if (a.bias) {
    check.shape("bias", *a.bias, {{"out_features", out_features}});
    check.dtype("bias", *a.bias, {a.weight.dtype});
    check.contiguous("bias", *a.bias);
    check.disjoint("out", a.out, "bias", *a.bias);
    check.device(stream.device, {{"bias", &*a.bias}});
  }
  if (stream.device.type == DeviceType::kCuda && a.weight.rank != 2)
    check.fail("weight", "[out_features, in_features] on a CUDA device", "a packed weight");
  if (a.out.numel() == 0) return;
  dispatch("linear", {&cpu::linear, ERNIE_CUDA_FN(cuda::linear)}, a, stream);
}

void linear_pack(const LinearPackArgs& a, const Stream& stream) {
  const Check check("linear_pack");
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kF32, DType::kBF16});
  check.inner_contiguous("weight", a.weight);
  check.rank("out", a.out, a.weight.dtype == DType::kBF16 ? 4 : 3);
  check_weight(Check("linear_pack"), a.out, a.weight.size(0), a.weight.size(1));
  check.dtype("out", a.out, {a.weight.dtype});
  check.writable("out", a.out);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"out", &a.out}, {"weight", &a.weight}});
  if (a.out.numel() == 0) return;
  dispatch<LinearPackArgs>("linear_pack", {&cpu::linear_pack, nullptr}, a, stream);
}

}  // namespace ernie
