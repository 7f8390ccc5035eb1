#include "ops/gemm.h"

#include "bindings/linear_outputs.h"
#include "io/file.h"

namespace py = pybind11;

namespace ernie::bindings {

namespace {

Activation activation_named(const std::optional<Scalar<std::string>>& activation) {
  if (!activation) return Activation::kNone;
  const std::string name = activation->get("linear", "activation");
  if (name == "gelu") return Activation::kGelu;
  if (name == "quick_gelu") return Activation::kQuickGelu;
  throw ArgumentError("linear: activation: expected gelu, quick_gelu or None, got " +
                      io::quoted(name));
}

// The tensor to pack into, out_features, in_features.
py::tuple linear_pack_out(const TensorView& weight) {
  const Check check("linear_pack");
  check.rank("weight", weight, 2);
  check.dtype("weight", weight, {DType::kF32, DType::kBF16});
  const int64_t panels = ceil_div(weight.size(0), kPackedRows), k = weight.size(1);
  const std::vector<int64_t> shape =
      weight.dtype == DType::kF32 ? std::vector<int64_t>{panels, k, kPackedRows}
                                  : std::vector<int64_t>{panels, ceil_div(k, 2), kPackedRows, 2};
  return py::make_tuple(empty(shape, weight.dtype, stream_of({&weight})), weight.size(0), k);
}

}  // namespace

void bind_gemm(py::module_& m) {
  def_linear_outputs(m, "linear", "linear_silu_and_mul");
  m.def("linear_pack_out", &linear_pack_out, py::arg("weight"));
  m.def(
      "linear",
      [](TensorView out, TensorView x, TensorView weight, std::optional<TensorView> bias,
         const std::optional<Scalar<std::string>>& activation) {
        run(linear,
            {.out = out,
             .x = x,
             .weight = weight,
             .bias = bias,
             .activation = activation_named(activation)},
            {&out, &x, &weight, pointer_to(bias)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
      py::arg("activation") = py::none());
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
