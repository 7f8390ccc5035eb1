#include "ops/wint8.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/linear_checks.h"

namespace ernie {
namespace {

void check_packed(const Check& check, const char* name, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  check.shape(name, w,
              {panels_of(out_features),
               {"ceil(in_features / 4)", ceil_div(in_features, 4)},
               {"16", kPanelRows},
               {"4", 4}});
}

void check_weight(const Check& check, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  check.dtype("weight", w, {DType::kI8});
  if (w.rank == 2)
    check.shape("weight", w, {{"out_features", out_features}, {"in_features", in_features}});
  else
    check_packed(check, "weight", w, out_features, in_features);
  check.contiguous("weight", w);
}

// Operands of a product, all but `out`.
template <class Args>
void check_operands(const char* op, const Args& a, int64_t out_features, const Stream& stream) {
  const Check check(op);
  check_weight(check, a.weight, out_features, a.x.size(1));
  check_scale(check, a.scale, out_features);
  check_bias(check, a.bias, out_features, {DType::kF32, DType::kBF16}, stream);
  check.device(stream.device,
               {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}, {"scale", &a.scale}});
  check_apart(check, "out", a.out, a);
  check_unpacked_on_cuda(check, a.weight, stream);
  if (a.int8_activations) refuse_int8_activations_on_cuda(op, stream);
}

}  // namespace

void wint8_linear(const Wint8LinearArgs& a, const Stream& stream) {
  const Check check("wint8_linear");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t out_features = a.out.size(1);
  check_rows(check, "out", a.out, a.x.size(0), "out_features", out_features);
  check.dtype("out", a.out, {a.x.dtype, DType::kF32});
  check_operands("wint8_linear", a, out_features, stream);
  if (a.out.numel() == 0) return;
  dispatch("wint8_linear", {&cpu::wint8_linear, ERNIE_CUDA_FN(cuda::wint8_linear)}, a, stream);
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream& stream) {
  const Check check("wint8_linear_silu_and_mul");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t intermediate_size = a.out.size(1);
  check_rows(check, "out", a.out, a.x.size(0), "intermediate_size", intermediate_size);
  check.dtype("out", a.out, {a.x.dtype});
  check_operands("wint8_linear_silu_and_mul", a, 2 * intermediate_size, stream);
  check_gate_up(check, a, stream);
  if (a.out.numel() == 0) return;
  dispatch("wint8_linear_silu_and_mul",
           {&cpu::wint8_linear_silu_and_mul, ERNIE_CUDA_FN(cuda::wint8_linear_silu_and_mul)}, a,
           stream);
}

void wint8_quantize(const Wint8QuantizeArgs& a, const Stream& stream) {
  const Check check("wint8_quantize");
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kF32, DType::kBF16});
  check.inner_contiguous("weight", a.weight);
  const int64_t out_features = a.weight.size(0), in_features = a.weight.size(1);
  check.dtype("out", a.out, {DType::kI8});
  if (a.out.rank == 2)
    check.shape("out", a.out, {{"out_features", out_features}, {"in_features", in_features}});
  else
    check_packed(check, "out", a.out, out_features, in_features);
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check_scale(check, a.scale, out_features);
  check.writable("scale", a.scale);
  check.disjoint("out", a.out, "weight", a.weight);
  check.disjoint("scale", a.scale, "weight", a.weight);
  check.disjoint("out", a.out, "scale", a.scale);
  check.device(stream.device, {{"out", &a.out}, {"scale", &a.scale}, {"weight", &a.weight}});
  if (out_features == 0) return;
  dispatch<Wint8QuantizeArgs>("wint8_quantize", {&cpu::wint8_quantize, nullptr}, a, stream);
}

void wint8_pack(const Wint8PackArgs& a, const Stream& stream) {
  const Check check("wint8_pack");
  check.rank("weight", a.weight, 2);
  check.dtype("weight", a.weight, {DType::kI8});
  check.inner_contiguous("weight", a.weight);
  check_packed(check, "out", a.out, a.weight.size(0), a.weight.size(1));
  check.dtype("out", a.out, {DType::kI8});
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"out", &a.out}, {"weight", &a.weight}});
  if (a.out.numel() == 0) return;
  dispatch<Wint8PackArgs>("wint8_pack", {&cpu::wint8_pack, nullptr}, a, stream);
}

}  // namespace ernie
