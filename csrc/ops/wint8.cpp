#include "ops/wint8.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

constexpr int64_t kPanelRows = 16;

void check_packed(const Check& check, const char* name, const TensorView& w, int64_t out_features,
                  int64_t in_features) {
  check.shape(name, w,
              {{"ceil(out_features / 16)", ceil_div(out_features, kPanelRows)},
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

void check_x(const Check& check, const TensorView& x) {
  check.rank("x", x, 2);
  check.dtype("x", x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", x);
}

// out or gate_up: a matrix of one row per token.
void check_rows(const Check& check, const char* name, const TensorView& t, int64_t num_tokens,
                const char* columns_name, int64_t columns) {
  check.shape(name, t, {{"num_tokens", num_tokens}, {columns_name, columns}});
  check.inner_contiguous(name, t);
  check.writable(name, t);
}

// That `written` is apart from every input.
template <class Args>
void check_apart(const Check& check, const char* name, const TensorView& written, const Args& a) {
  check.disjoint(name, written, "x", a.x);
  check.disjoint(name, written, "weight", a.weight);
  check.disjoint(name, written, "scale", a.scale);
  if (a.bias) check.disjoint(name, written, "bias", *a.bias);
}

// Operands of a product, all but `out`.
template <class Args>
void check_operands(const char* op, const Args& a, int64_t out_features, const Stream& stream) {
  const Check check(op);
  check_weight(check, a.weight, out_features, a.x.size(1));
  check.shape("scale", a.scale, {{"out_features", out_features}});
  check.dtype("scale", a.scale, {DType::kF32});
  check.contiguous("scale", a.scale);
  if (a.bias) {
    check.shape("bias", *a.bias, {{"out_features", out_features}});
    check.dtype("bias", *a.bias, {DType::kF32, DType::kBF16});
    check.contiguous("bias", *a.bias);
    check.device(stream.device, {{"bias", &*a.bias}});
  }
  check.device(stream.device,
               {{"out", &a.out}, {"x", &a.x}, {"weight", &a.weight}, {"scale", &a.scale}});
  check_apart(check, "out", a.out, a);
  if (stream.device.type != DeviceType::kCuda) return;
  if (a.weight.rank != 2)
    check.fail("weight", "[out_features, in_features] on a CUDA device", "a packed weight");
  if (a.int8_activations)
    throw UnsupportedError(std::string(op) + ": int8_activations: no kernel for " +
                           to_string(stream.device) + "; pass False");
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
  const int64_t num_tokens = a.x.size(0), intermediate_size = a.out.size(1);
  check_rows(check, "out", a.out, num_tokens, "intermediate_size", intermediate_size);
  check.dtype("out", a.out, {a.x.dtype});
  const int64_t out_features = 2 * intermediate_size;
  check_operands("wint8_linear_silu_and_mul", a, out_features, stream);
  if (a.gate_up) {
    const TensorView& s = *a.gate_up;
    check_rows(check, "gate_up", s, num_tokens, "2 * intermediate_size", out_features);
    check.dtype("gate_up", s, {a.x.dtype});
    check.disjoint("gate_up", s, "out", a.out);
    check_apart(check, "gate_up", s, a);
    check.device(stream.device, {{"gate_up", &s}});
  } else if (stream.device.type == DeviceType::kCuda) {
    check.fail("gate_up", "[num_tokens, 2 * intermediate_size] on a CUDA device", "none");
  }
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
  check.shape("scale", a.scale, {{"out_features", out_features}});
  check.dtype("scale", a.scale, {DType::kF32});
  check.contiguous("scale", a.scale);
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
