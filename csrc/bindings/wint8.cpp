#include "ops/wint8.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/checked.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

constexpr const char* kLinear = "wint8_linear";
constexpr const char* kGated = "wint8_linear_silu_and_mul";

int64_t rows_of(const Check& check, const TensorView& weight, std::optional<int64_t> out_features) {
  if (!out_features) check.rank("weight", weight, 2);
  return out_features ? *out_features : weight.size(0);
}

Tensor wint8_linear_out(const TensorView& x, const TensorView& weight,
                        std::optional<int64_t> out_features,
                        const std::optional<Scalar<std::string>>& dtype) {
  const Check check(kLinear);
  check.rank("x", x, 2);
  const int64_t n = rows_of(check, weight, out_features);
  const DType wanted =
      dtype ? dtype_named(dtype->get(kLinear, "dtype"), "wint8_linear: dtype") : x.dtype;
  return empty({x.size(0), n}, wanted, stream_of({&x, &weight}));
}

// out, and gate_up where the device needs it.
py::tuple wint8_linear_silu_and_mul_out(const TensorView& x, const TensorView& weight,
                                        std::optional<int64_t> out_features) {
  const Check check(kGated);
  check.rank("x", x, 2);
  const int64_t n = rows_of(check, weight, out_features);
  if (n % 2 != 0) check.fail("weight", "an even number of out_features", std::to_string(n));
  const Stream stream = stream_of({&x, &weight});
  py::object gate_up = py::none();
  if (stream.device.type == DeviceType::kCuda)
    gate_up = py::cast(empty({x.size(0), n}, x.dtype, stream));
  return py::make_tuple(empty({x.size(0), n / 2}, x.dtype, stream), gate_up);
}

std::vector<int64_t> packed_shape(int64_t out_features, int64_t in_features) {
  constexpr int64_t kPanelRows = 16;
  return {ceil_div(out_features, kPanelRows), ceil_div(in_features, 4), kPanelRows, 4};
}

// The int8 weight, the scales, out_features, in_features.
py::tuple wint8_quantize_out(const TensorView& weight, Scalar<bool> pack) {
  Check("wint8_quantize").rank("weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1);
  const Stream stream = stream_of({&weight});
  const auto shape =
      pack.get("wint8_quantize", "pack") ? packed_shape(n, k) : std::vector<int64_t>{n, k};
  return py::make_tuple(empty(shape, DType::kI8, stream), empty({n}, DType::kF32, stream), n, k);
}

// The tensor to pack into, out_features, in_features.
py::tuple wint8_pack_out(const TensorView& weight) {
  Check("wint8_pack").rank("weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1);
  return py::make_tuple(empty(packed_shape(n, k), DType::kI8, stream_of({&weight})), n, k);
}

}  // namespace

void bind_wint8(py::module_& m) {
  m.def("wint8_linear_out", &wint8_linear_out, py::arg("x"), py::arg("weight"),
        py::arg("out_features"), py::arg("dtype"));
  m.def("wint8_linear_silu_and_mul_out", &wint8_linear_silu_and_mul_out, py::arg("x"),
        py::arg("weight"), py::arg("out_features"));
  m.def("wint8_quantize_out", &wint8_quantize_out, py::arg("weight"), py::arg("pack"));
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
  // One op: whether it packs, the shape of `out` says.
  for (const char* name : {"wint8_quantize", "wint8_quantize_and_pack"})
    m.def(
        name,
        [](TensorView out, TensorView scale, TensorView weight) {
          run(wint8_quantize, {.out = out, .scale = scale, .weight = weight},
              {&out, &scale, &weight});
        },
        py::arg("out"), py::arg("scale"), py::arg("weight"));
  m.def(
      "wint8_pack",
      [](TensorView out, TensorView weight) {
        run(wint8_pack, {.out = out, .weight = weight}, {&out, &weight});
      },
      py::arg("out"), py::arg("weight"));
}

}  // namespace ernie::bindings
