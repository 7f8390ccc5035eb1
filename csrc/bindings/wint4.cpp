#include "ops/wint4.h"

#include "bindings/quantized_weight.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

constexpr const char* kLinear = "wint4_linear";
constexpr const char* kGated = "wint4_linear_silu_and_mul";

// The tensor to pack into, out_features, in_features: bytes hold an even number and one less.
py::tuple wint4_pack_out(const TensorView& weight,
                         const std::optional<Scalar<int64_t>>& in_features) {
  const Check check("wint4_pack");
  check.rank("weight", weight, 2);
  const int64_t n = weight.size(0), most = 2 * weight.size(1);
  const int64_t k = in_features ? in_features->get("wint4_pack", "in_features") : most;
  if (k != most && (k != most - 1 || k < 0))
    check.fail("in_features", std::to_string(most) + " or one less", std::to_string(k));
  return py::make_tuple(empty(packed_shape(n, weight.size(1)), DType::kU8, stream_of({&weight})), n,
                        k);
}

}  // namespace

void bind_wint4(py::module_& m) {
  def_linear_outputs(m, kLinear, kGated);
  m.def(
      "wint4_quantize_out",
      [](const TensorView& weight, Scalar<bool> pack) {
        return quantize_out("wint4_quantize", DType::kU8, 2, weight, pack);
      },
      py::arg("weight"), py::arg("pack"));
  m.def("wint4_pack_out", &wint4_pack_out, py::arg("weight"), py::arg("in_features"));
  m.def(
      kLinear,
      [](TensorView out, TensorView x, TensorView weight, TensorView scale,
         std::optional<TensorView> bias) {
        run(wint4_linear, {.out = out, .x = x, .weight = weight, .scale = scale, .bias = bias},
            {&out, &x, &weight, &scale, pointer_to(bias)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"));
  m.def(
      kGated,
      [](TensorView out, TensorView x, TensorView weight, TensorView scale,
         std::optional<TensorView> bias, std::optional<TensorView> gate_up) {
        run(wint4_linear_silu_and_mul,
            {.out = out,
             .x = x,
             .weight = weight,
             .scale = scale,
             .bias = bias,
             .gate_up = gate_up},
            {&out, &x, &weight, &scale, pointer_to(bias), pointer_to(gate_up)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"),
      py::arg("gate_up"));
  def_quantize(m, {"wint4_quantize", "wint4_quantize_and_pack"}, wint4_quantize);
  def_pack(m, "wint4_pack", wint4_pack);
}

}  // namespace ernie::bindings
