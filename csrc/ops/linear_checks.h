// What the front doors of the linear layers ask alike of their arguments, whatever the weight is
// made of: gemm.cpp and, by way of quantized_checks.h, wint8.cpp and wint4.cpp.
#pragma once

#include <optional>

#include "core/check.h"
#include "core/checked.h"
#include "core/error.h"

namespace ernie {

// A packed weight is of panels of so many output rows.
constexpr int64_t kPanelRows = 16;

inline Dim panels_of(int64_t out_features) {
  return {"ceil(out_features / 16)", ceil_div(out_features, kPanelRows)};
}

inline void check_x(const Check& check, const TensorView& x) {
  check.rank("x", x, 2);
  check.dtype("x", x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", x);
}

// out or gate_up: a matrix of one row per token.
inline void check_rows(const Check& check, const char* name, const TensorView& t,
                       int64_t num_tokens, const char* columns_name, int64_t columns) {
  check.shape(name, t, {{"num_tokens", num_tokens}, {columns_name, columns}});
  check.inner_contiguous(name, t);
  check.writable(name, t);
}

// x, and out of one dtype of `out_dtypes`. Returns the columns of out, which the weight decides.
template <class Args>
int64_t check_x_and_out(const Check& check, const Args& a, const char* columns_name,
                        std::initializer_list<DType> out_dtypes) {
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  check_rows(check, "out", a.out, a.x.size(0), columns_name, a.out.size(1));
  check.dtype("out", a.out, out_dtypes);
  return a.out.size(1);
}

inline void check_scale(const Check& check, const TensorView& scale, int64_t out_features) {
  check.shape("scale", scale, {{"out_features", out_features}});
  check.dtype("scale", scale, {DType::kF32});
  check.contiguous("scale", scale);
}

inline void check_bias(const Check& check, const std::optional<TensorView>& bias,
                       int64_t out_features, std::initializer_list<DType> allowed,
                       const Stream& stream) {
  if (!bias) return;
  check.shape("bias", *bias, {{"out_features", out_features}});
  check.dtype("bias", *bias, allowed);
  check.contiguous("bias", *bias);
  check.device(stream.device, {{"bias", &*bias}});
}

// CUDA kernels read weights as they are stored; the CPU's read panels.
inline void check_unpacked_on_cuda(const Check& check, const TensorView& weight,
                                   const Stream& stream, const char* columns = "in_features") {
  if (stream.device.type == DeviceType::kCuda && weight.rank != 2)
    check.fail("weight", std::string("[out_features, ") + columns + "] on a CUDA device",
               "a packed weight");
}

inline void refuse_int8_activations_on_cuda(const char* op, const Stream& stream) {
  if (stream.device.type == DeviceType::kCuda)
    throw UnsupportedError(std::string(op) + ": int8_activations: no kernel for " +
                           to_string(stream.device) + "; pass False");
}

// That `written` is apart from every input.
template <class Args>
void check_apart(const Check& check, const char* name, const TensorView& written, const Args& a) {
  check.disjoint(name, written, "x", a.x);
  check.disjoint(name, written, "weight", a.weight);
  if constexpr (requires { a.scale; }) check.disjoint(name, written, "scale", a.scale);
  if (a.bias) check.disjoint(name, written, "bias", *a.bias);
}

// Where linear_silu_and_mul keeps its projections: CUDA kernels need it.
template <class Args>
void check_gate_up(const Check& check, const Args& a, const Stream& stream) {
  if (a.gate_up) {
    const TensorView& s = *a.gate_up;
    check_rows(check, "gate_up", s, a.x.size(0), "2 * intermediate_size", 2 * a.out.size(1));
    check.dtype("gate_up", s, {a.x.dtype});
    check.disjoint("gate_up", s, "out", a.out);
    check_apart(check, "gate_up", s, a);
    check.device(stream.device, {{"gate_up", &s}});
  } else if (stream.device.type == DeviceType::kCuda) {
    check.fail("gate_up", "[num_tokens, 2 * intermediate_size] on a CUDA device", "none");
  }
}

}  // namespace ernie
