#include "ops/gemm.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/checked.h"

namespace py = pybind11;

namespace ernie::bindings {

namespace {

Tensor linear_out(const TensorView& x, const TensorView& weight,
                  std::optional<int64_t> out_features,
                  const std::optional<Scalar<std::string>>& dtype) {
  const Check check("linear");
  check.rank("x", x, 2);
  if (!out_features) {
    check.rank("weight", weight, 2);
    out_features = weight.size(0);
  }
  const DType wanted =
      dtype ? dtype_named(dtype->get("linear", "dtype"), "linear: dtype") : x.dtype;
  return empty({x.size(0), *out_features}, wanted, stream_of({&x, &weight}));
}

// out, and gate_up where the device needs it.
py::tuple linear_silu_and_mul_out(const TensorView& x, const TensorView& weight,
                                  std::optional<int64_t> out_features) {
  const Check check("linear_silu_and_mul");
  check.rank("x", x, 2);
  if (!out_features) {
    check.rank("weight", weight, 2);
    out_features = weight.size(0);
  }
  if (*out_features % 2 != 0)
    check.fail("weight", "an even number of out_features", std::to_string(*out_features));
  const Stream stream = stream_of({&x, &weight});
  py::object gate_up = py::none();
  if (stream.device.type == DeviceType::kCuda)
    gate_up = py::cast(empty({x.size(0), *out_features}, x.dtype, stream));
  return py::make_tuple(empty({x.size(0), *out_features / 2}, x.dtype, stream), gate_up);
}

// The tensor to pack into, out_features, in_features.
py::tuple linear_pack_out(const TensorView& weight) {
  constexpr int64_t kPanelRows = 16;
  const Check check("linear_pack");
  check.rank("weight", weight, 2);
  check.dtype("weight", weight, {DType::kF32, DType::kBF16});
  const int64_t panels = ceil_div(weight.size(0), kPanelRows), k = weight.size(1);
  const std::vector<int64_t> shape =
      weight.dtype == DType::kF32 ? std::vector<int64_t>{panels, k, kPanelRows}
                                  : std::vector<int64_t>{panels, ceil_div(k, 2), kPanelRows, 2};
  return py::make_tuple(empty(shape, weight.dtype, stream_of({&weight})), weight.size(0), k);
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("linear_out", &linear_out, py::arg("x"), py::arg("weight"), py::arg("out_features"),
        py::arg("dtype"));
  m.def("linear_silu_and_mul_out", &linear_silu_and_mul_out, py::arg("x"), py::arg("weight"),
        py::arg("out_features"));
  m.def("linear_pack_out", &linear_pack_out, py::arg("weight"));
  m.def(
      "linear",
      [](TensorView out, TensorView x, TensorView weight, std::optional<TensorView> bias) {
        run(linear, {.out = out, .x = x, .weight = weight, .bias = bias},
            {&out, &x, &weight, pointer_to(bias)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("bias") = py::none());
  m.def(
      "linear_silu_and_mul",
      [](TensorView out, TensorView x, TensorView weight, std::optional<TensorView> bias,
         std::optional<TensorView> gate_up) {
        run(linear_silu_and_mul,
            {.out = out, .x = x, .weight = weight, .bias = bias, .gate_up = gate_up},
            {&out, &x, &weight, pointer_to(bias), pointer_to(gate_up)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("gate_up"));
  m.def(
      "linear_pack",
      [](TensorView out, TensorView weight) {
        run(linear_pack, {.out = out, .weight = weight}, {&out, &weight});
      },
      py::arg("out"), py::arg("weight"));
}

}  // namespace ernie::bindings
