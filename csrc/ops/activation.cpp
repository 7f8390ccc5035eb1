#include "ops/activation.h"

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

void check_x(const Check& check, const TensorView& x) {
  check.rank("x", x, 2);
  check.dtype("x", x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", x);
}

void check_out(const Check& check, const TensorView& out, const TensorView& x, Dim columns,
               const Stream& stream) {
  check.shape("out", out, {{"num_tokens", x.size(0)}, columns});
  check.dtype("out", out, {x.dtype});
  check.inner_contiguous("out", out);
  check.writable("out", out);
  check.device(stream.device, {{"out", &out}, {"x", &x}});
}

void check_activation(const char* op, const ActivationArgs& a, const Stream& stream) {
  const Check check(op);
  check_x(check, a.x);
  check_out(check, a.out, a.x, {"size", a.x.size(1)}, stream);
  check.disjoint_or_same_rows("out", a.out, "x", a.x);
}

}  // namespace

void silu_and_mul(const SiluAndMulArgs& a, const Stream& stream) {
  const Check check("silu_and_mul");
  check_x(check, a.x);
  if (a.x.size(1) % 2 != 0)
    check.fail("x", "an even number of columns, gate and up", "shape " + shape_string(a.x));
  check_out(check, a.out, a.x, {"intermediate_size", a.x.size(1) / 2}, stream);
  check.disjoint("out", a.out, "x", a.x);
  if (a.out.numel() == 0) return;
  dispatch("silu_and_mul", {&cpu::silu_and_mul, ERNIE_CUDA_FN(cuda::silu_and_mul)}, a, stream);
}

void gelu(const ActivationArgs& a, const Stream& stream) {
  check_activation("gelu", a, stream);
  if (a.out.numel() == 0) return;
  dispatch("gelu", {&cpu::gelu, ERNIE_CUDA_FN(cuda::gelu)}, a, stream);
}

void quick_gelu(const ActivationArgs& a, const Stream& stream) {
  check_activation("quick_gelu", a, stream);
  if (a.out.numel() == 0) return;
  dispatch("quick_gelu", {&cpu::quick_gelu, ERNIE_CUDA_FN(cuda::quick_gelu)}, a, stream);
}

}  // namespace ernie
