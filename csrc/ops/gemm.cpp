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

// Operands of a product, all but `out`.
void check_operands(const Check& check, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const std::optional<TensorView>& bias,
                    int64_t out_features, const Stream& stream) {
  check_weight(check, weight, out_features, x.size(1));
  if (weight.dtype == DType::kF32) check.dtype("x", x, {DType::kF32});
  check.disjoint("out", out, "x", x);
  check.disjoint("out", out, "weight", weight);
  check.device(stream.device, {{"out", &out}, {"x", &x}, {"weight", &weight}});
  if (bias) {
    check.shape("bias", *bias, {{"out_features", out_features}});
    check.dtype("bias", *bias, {weight.dtype});
    check.contiguous("bias", *bias);
    check.disjoint("out", out, "bias", *bias);
    check.device(stream.device, {{"bias", &*bias}});
  }
  if (stream.device.type == DeviceType::kCuda && weight.rank != 2)
    check.fail("weight", "[out_features, in_features] on a CUDA device", "a packed weight");
}

// out or s: a matrix of one row per token.
void check_rows(const Check& check, const char* name, const TensorView& t, int64_t num_tokens,
                const char* columns_name, int64_t columns) {
  check.shape(name, t, {{"num_tokens", num_tokens}, {columns_name, columns}});
  check.inner_contiguous(name, t);
  check.writable(name, t);
}

void check_x(const Check& check, const TensorView& x) {
  check.rank("x", x, 2);
  check.dtype("x", x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", x);
}

}  // namespace

void linear(const LinearArgs& a, const Stream& stream) {
  const Check check("linear");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t out_features = a.out.size(1);
  check_rows(check, "out", a.out, a.x.size(0), "out_features", out_features);
  check.dtype("out", a.out, {a.x.dtype, DType::kF32});
  check_operands(check, a.out, a.x, a.weight, a.bias, out_features, stream);
  if (a.out.numel() == 0) return;
  dispatch("linear", {&cpu::linear, ERNIE_CUDA_FN(cuda::linear)}, a, stream);
}

void linear_silu_and_mul(const LinearSiluAndMulArgs& a, const Stream& stream) {
  const Check check("linear_silu_and_mul");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t num_tokens = a.x.size(0), intermediate_size = a.out.size(1);
  check_rows(check, "out", a.out, num_tokens, "intermediate_size", intermediate_size);
  check.dtype("out", a.out, {a.x.dtype});
  const int64_t out_features = 2 * intermediate_size;
  check_operands(check, a.out, a.x, a.weight, a.bias, out_features, stream);
  if (a.gate_up) {
    const TensorView& s = *a.gate_up;
    check_rows(check, "gate_up", s, num_tokens, "2 * intermediate_size", out_features);
    check.dtype("gate_up", s, {a.x.dtype});
    check.disjoint("gate_up", s, "out", a.out);
    check.disjoint("gate_up", s, "x", a.x);
    check.disjoint("gate_up", s, "weight", a.weight);
    if (a.bias) check.disjoint("gate_up", s, "bias", *a.bias);
    check.device(stream.device, {{"gate_up", &s}});
  } else if (stream.device.type == DeviceType::kCuda) {
    check.fail("gate_up", "[num_tokens, 2 * intermediate_size] on a CUDA device", "none");
  }
  if (a.out.numel() == 0) return;
  dispatch("linear_silu_and_mul",
           {&cpu::linear_silu_and_mul, ERNIE_CUDA_FN(cuda::linear_silu_and_mul)}, a, stream);
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
