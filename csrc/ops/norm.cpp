#include "ops/norm.h"

#include <cmath>

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

// What both ops ask of x, weight, out and eps.
void check_norm(const Check& check, const TensorView& out, const TensorView& x,
                const TensorView& weight, float eps) {
  check.rank("x", x, 2);
  const int64_t num_tokens = x.size(0), hidden_size = x.size(1);
  check.dtype("x", x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", x);
  check.shape("weight", weight, {{"hidden_size", hidden_size}});
  check.dtype("weight", weight, {x.dtype});
  check.contiguous("weight", weight);
  check.shape("out", out, {{"num_tokens", num_tokens}, {"hidden_size", hidden_size}});
  check.dtype("out", out, {x.dtype});
  check.inner_contiguous("out", out);
  check.writable("out", out);
  check.disjoint("out", out, "weight", weight);
  // In place means the very same rows; a shifted overlap would read what it has overwritten.
  if (out.data != x.data || out.step(0) != x.step(0)) check.disjoint("out", out, "x", x);
  if (!(eps > 0) || std::isinf(eps)) check.fail("eps", "a finite value > 0", std::to_string(eps));
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream& stream) {
  const Check check("rms_norm");
  check_norm(check, a.out, a.x, a.weight, a.eps);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}});
  if (a.x.numel() == 0) return;
  dispatch("rms_norm", {&cpu::rms_norm, ERNIE_CUDA_FN(cuda::rms_norm)}, a, stream);
}

void add_rms_norm(const AddRmsNormArgs& a, const Stream& stream) {
  const Check check("add_rms_norm");
  check_norm(check, a.out, a.x, a.weight, a.eps);
  check.shape("residual", a.residual, {{"num_tokens", a.x.size(0)}, {"hidden_size", a.x.size(1)}});
  check.dtype("residual", a.residual, {a.x.dtype});
  check.inner_contiguous("residual", a.residual);
  check.writable("residual", a.residual);
  check.disjoint("residual", a.residual, "x", a.x);
  check.disjoint("residual", a.residual, "out", a.out);
  check.disjoint("residual", a.residual, "weight", a.weight);
  check.device(stream.device,
               {{"out", &a.out}, {"residual", &a.residual}, {"x", &a.x}, {"weight", &a.weight}});
  if (a.x.numel() == 0) return;
  dispatch("add_rms_norm", {&cpu::add_rms_norm, ERNIE_CUDA_FN(cuda::add_rms_norm)}, a, stream);
}

}  // namespace ernie
