#include "ops/wint8.h"

#include "bindings/quantized_weight.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

constexpr const char* kLinear = "wint8_linear";
constexpr const char* kGated = "wint8_linear_silu_and_mul";

// The tensor to pack into, out_features, in_features.
py::tuple wint8_pack_out(const TensorView& weight) {
  Check("wint8_pack").rank("weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1);
  return py::make_tuple(empty(packed_shape(n, k), DType::kI8, stream_of({&weight})), n, k);
}

}  // namespace

void bind_wint8(py::module_& m) {
  def_linear_outputs(m, kLinear, kGated);
  m.def(
      "wint8_quantize_out",
      [](const TensorView& weight, Scalar<bool> pack) {
        return quantize_out("wint8_quantize", DType::kI8, 1, weight, pack);
      },
      py::arg("weight"), py::arg("pack"));
  m.def("wint8_pack_out", &wint8_pack_out, py::arg("weight"));
  m.def(
      kLinear,
      [](TensorView out, TensorView x, TensorView weight, TensorView scale,
         std::optional<TensorView> bias, Scalar<bool> int8_activations) {
        run(wint8_linear,
            {.out = out,
             .x = x,
             .weight = weight,
             .scale = scale,
             .bias = bias,
             .int8_activations = int8_activations.get(kLinear, "int8_activations")},
            {&out, &x, &weight, &scale, pointer_to(bias)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"),
      py::arg("int8_activations"));
  m.def(
      kGated,
      [](TensorView out, TensorView x, TensorView weight, TensorView scale,
         std::optional<TensorView> bias, std::optional<TensorView> gate_up,
         Scalar<bool> int8_activations) {
        run(wint8_linear_silu_and_mul,
            {.out = out,
             .x = x,
             .weight = weight,
             .scale = scale,
             .bias = bias,
             .gate_up = gate_up,
             .int8_activations = int8_activations.get(kGated, "int8_activations")},
            {&out, &x, &weight, &scale, pointer_to(bias), pointer_to(gate_up)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"),
      py::arg("gate_up"), py::arg("int8_activations"));
  def_quantize(m, {"wint8_quantize", "wint8_quantize_and_pack"}, wint8_quantize);
  def_pack(m, "wint8_pack", wint8_pack);
}

}  // namespace ernie::bindings
