// What the ops of linear layers write to where the caller gives no `out`: gemm.cpp, wint8.cpp and
// wint4.cpp.
#pragma once

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/checked.h"

namespace ernie::bindings {

// A packed weight is of panels of so many output rows.
constexpr int64_t kPackedRows = 16;

// Rows of x, and of the weight: `out_features` where it is packed.
inline std::pair<int64_t, int64_t> rows_of(const Check& check, const TensorView& x,
                                           const TensorView& weight,
                                           std::optional<int64_t> out_features) {
  check.rank("x", x, 2);
  if (!out_features) check.rank("weight", weight, 2);
  return {x.size(0), out_features ? *out_features : weight.size(0)};
}

inline Tensor linear_out(const char* op, const TensorView& x, const TensorView& weight,
                         std::optional<int64_t> out_features,
                         const std::optional<Scalar<std::string>>& dtype) {
  const auto [rows, n] = rows_of(Check(op), x, weight, out_features);
  const DType wanted =
      dtype ? dtype_named(dtype->get(op, "dtype"), (std::string(op) + ": dtype").c_str()) : x.dtype;
  return empty({rows, n}, wanted, stream_of({&x, &weight}));
}

// out, and gate_up where the device needs it.
inline pybind11::tuple linear_silu_and_mul_out(const char* op, const TensorView& x,
                                               const TensorView& weight,
                                               std::optional<int64_t> out_features) {
  const Check check(op);
  const auto [rows, n] = rows_of(check, x, weight, out_features);
  if (n % 2 != 0) check.fail("weight", "an even number of out_features", std::to_string(n));
  const Stream stream = stream_of({&x, &weight});
  pybind11::object gate_up = pybind11::none();
  if (stream.device.type == DeviceType::kCuda)
    gate_up = pybind11::cast(empty({rows, n}, x.dtype, stream));
  return pybind11::make_tuple(empty({rows, n / 2}, x.dtype, stream), gate_up);
}

// Both, under the ops' names and `_out`.
inline void def_linear_outputs(pybind11::module_& m, const char* linear, const char* gated) {
  namespace py = pybind11;
  m.def((std::string(linear) + "_out").c_str(),
        [linear](const TensorView& x, const TensorView& weight, std::optional<int64_t> out_features,
                 const std::optional<Scalar<std::string>>& dtype) {
          return linear_out(linear, x, weight, out_features, dtype);
        },
        py::arg("x"), py::arg("weight"), py::arg("out_features"), py::arg("dtype"));
  m.def(
      (std::string(gated) + "_out").c_str(),
      [gated](const TensorView& x, const TensorView& weight, std::optional<int64_t> out_features) {
        return linear_silu_and_mul_out(gated, x, weight, out_features);
      },
      py::arg("x"), py::arg("weight"), py::arg("out_features"));
}

}  // namespace ernie::bindings
