#include "ops/gemm.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/linear_checks.h"

namespace ernie {
namespace {

void check_weight(const Check& check, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  check.dtype("weight", w, {DType::kF32, DType::kBF16});
  if (w.rank == 2)
    check.shape("weight", w, {{"out_features", out_features}, {"in_features", in_features}});
  else if (w.dtype == DType::kBF16)
    check.shape("weight", w,
                {panels_of(out_features),
                 {"ceil(in_features / 2)", ceil_div(in_features, 2)},
                 {"16", kPanelRows},
                 {"2", 2}});
  else
    check.shape("weight", w,
                {panels_of(out_features), {"in_features", in_features}, {"16", kPanelRows}});
  check.contiguous("weight", w);
}

// Operands of a product, all but `out`.
template <class Args>
void check_operands(const Check& check, const Args& a, int64_t out_features, const Stream& stream) {
  check_weight(check, a.weight, out_features, a.x.size(1));
  if (a.weight.dtype == DType::kF32) check.dtype("x", a.x, {DType::kF32});
  check_bias(check, a.bias, out_features, {a.weight.dtype}, stream);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}});
  check_apart(check, "out", a.out, a);
  check_unpacked_on_cuda(check, a.weight, stream);
}

}  // namespace

void linear(const LinearArgs& a, const Stream& stream) {
  const Check check("linear");
  const int64_t out_features = check_x_and_out(check, a, "out_features", {a.x.dtype, DType::kF32});
  check_operands(check, a, out_features, stream);
  if (a.out.numel() == 0) return;
  dispatch("linear", {&cpu::linear, ERNIE_CUDA_FN(cuda::linear)}, a, stream);
}

void linear_silu_and_mul(const LinearSiluAndMulArgs& a, const Stream& stream) {
  const Check check("linear_silu_and_mul");
  const int64_t intermediate_size = check_x_and_out(check, a, "intermediate_size", {a.x.dtype});
  check_operands(check, a, 2 * intermediate_size, stream);
  check_gate_up(check, a, stream);
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
