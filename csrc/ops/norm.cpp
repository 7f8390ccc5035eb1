#include "ops/norm.h"

#include <cmath>

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

void check_factor(const Check& check, const char* name, const TensorView& t, const TensorView& x,
                  const TensorView& out) {
  check.shape(name, t, {{"hidden_size", x.size(1)}});
  check.dtype(name, t, {x.dtype});
  check.contiguous(name, t);
  check.disjoint("out", out, name, t);
}

// What every norm asks of its arguments.
template <class Args>
void check_norm(const Check& check, const Args& a, const Stream& stream) {
  check.rank("x", a.x, 2);
  check.dtype("x", a.x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", a.x);
  check.shape("out", a.out, {{"num_tokens", a.x.size(0)}, {"hidden_size", a.x.size(1)}});
  check.dtype("out", a.out, {a.x.dtype});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check_factor(check, "weight", a.weight, a.x, a.out);
  if constexpr (requires { a.bias; }) check_factor(check, "bias", a.bias, a.x, a.out);
  check.disjoint_or_same_rows("out", a.out, "x", a.x);
  if (!(a.eps > 0) || std::isinf(a.eps))
    check.fail("eps", "a finite value > 0", std::to_string(a.eps));
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}});
  if constexpr (requires { a.bias; }) check.device(stream.device, {{"bias", &a.bias}});
}

// And of the residual stream, where there is one.
template <class Args>
void check_residual(const Check& check, const Args& a, const Stream& stream) {
  check.shape("residual", a.residual, {{"num_tokens", a.x.size(0)}, {"hidden_size", a.x.size(1)}});
  check.dtype("residual", a.residual, {a.x.dtype});
  check.inner_contiguous("residual", a.residual);
  check.writable("residual", a.residual);
  check.disjoint("residual", a.residual, "x", a.x);
  check.disjoint("residual", a.residual, "out", a.out);
  check.disjoint("residual", a.residual, "weight", a.weight);
  if constexpr (requires { a.bias; }) check.disjoint("residual", a.residual, "bias", a.bias);
  check.device(stream.device, {{"residual", &a.residual}});
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream& stream) {
  check_norm(Check("rms_norm"), a, stream);
  if (a.x.numel() == 0) return;
  dispatch("rms_norm", {&cpu::rms_norm, ERNIE_CUDA_FN(cuda::rms_norm)}, a, stream);
}

void add_rms_norm(const AddRmsNormArgs& a, const Stream& stream) {
  const Check check("add_rms_norm");
  check_norm(check, a, stream);
  check_residual(check, a, stream);
  if (a.x.numel() == 0) return;
  dispatch("add_rms_norm", {&cpu::add_rms_norm, ERNIE_CUDA_FN(cuda::add_rms_norm)}, a, stream);
}

void layer_norm(const LayerNormArgs& a, const Stream& stream) {
  check_norm(Check("layer_norm"), a, stream);
  if (a.x.numel() == 0) return;
  dispatch("layer_norm", {&cpu::layer_norm, ERNIE_CUDA_FN(cuda::layer_norm)}, a, stream);
}

void add_layer_norm(const AddLayerNormArgs& a, const Stream& stream) {
  const Check check("add_layer_norm");
  check_norm(check, a, stream);
  check_residual(check, a, stream);
  if (a.x.numel() == 0) return;
  dispatch("add_layer_norm", {&cpu::add_layer_norm, ERNIE_CUDA_FN(cuda::add_layer_norm)}, a,
           stream);
}

}  // namespace ernie
