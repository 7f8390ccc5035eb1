#include "ops/wint4.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/checked.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

constexpr const char* kLinear = "wint4_linear";
constexpr const char* kGated = "wint4_linear_silu_and_mul";

int64_t rows_of(const Check& check, const TensorView& weight, std::optional<int64_t> out_features) {
  if (!out_features) check.rank("weight", weight, 2);
  return out_features ? *out_features : weight.size(0);
}

Tensor wint4_linear_out(const TensorView& x, const TensorView& weight,
                        std::optional<int64_t> out_features,
                        const std::optional<Scalar<std::string>>& dtype) {
  const Check check(kLinear);
  check.rank("x", x, 2);
  const int64_t n = rows_of(check, weight, out_features);
  const DType wanted =
      dtype ? dtype_named(dtype->get(kLinear, "dtype"), "wint4_linear: dtype") : x.dtype;
  return empty({x.size(0), n}, wanted, stream_of({&x, &weight}));
}

Tensor wint4_linear_silu_and_mul_out(const TensorView& x, const TensorView& weight,
                                     std::optional<int64_t> out_features) {
  const Check check(kGated);
  check.rank("x", x, 2);
  const int64_t n = rows_of(check, weight, out_features);
  if (n % 2 != 0) check.fail("weight", "an even number of out_features", std::to_string(n));
  return empty({x.size(0), n / 2}, x.dtype, stream_of({&x, &weight}));
}

std::vector<int64_t> packed_shape(int64_t out_features, int64_t in_features) {
  constexpr int64_t kPanelRows = 16;
  return {ceil_div(out_features, kPanelRows), ceil_div(in_features, 8), kPanelRows, 4};
}

// The 4-bit weight, the scales, out_features, in_features.
py::tuple wint4_quantize_out(const TensorView& weight, Scalar<bool> pack) {
  Check("wint4_quantize").rank("weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1);
  const Stream stream = stream_of({&weight});
  const auto shape = pack.get("wint4_quantize", "pack") ? packed_shape(n, k)
                                                        : std::vector<int64_t>{n, ceil_div(k, 2)};
  return py::make_tuple(empty(shape, DType::kU8, stream), empty({n}, DType::kF32, stream), n, k);
}

// The tensor to pack into, out_features, in_features: bytes hold an even number and one less.
py::tuple wint4_pack_out(const TensorView& weight,
                         const std::optional<Scalar<int64_t>>& in_features) {
  const Check check("wint4_pack");
  check.rank("weight", weight, 2);
  const int64_t n = weight.size(0), most = 2 * weight.size(1);
  const int64_t k = in_features ? in_features->get("wint4_pack", "in_features") : most;
  if (k != most && (k != most - 1 || k < 0))
    check.fail("in_features", std::to_string(most) + " or one less", std::to_string(k));
  return py::make_tuple(empty(packed_shape(n, k), DType::kU8, stream_of({&weight})), n, k);
}

}  // namespace

void bind_wint4(py::module_& m) {
  m.def("wint4_linear_out", &wint4_linear_out, py::arg("x"), py::arg("weight"),
        py::arg("out_features"), py::arg("dtype"));
  m.def("wint4_linear_silu_and_mul_out", &wint4_linear_silu_and_mul_out, py::arg("x"),
        py::arg("weight"), py::arg("out_features"));
  m.def("wint4_quantize_out", &wint4_quantize_out, py::arg("weight"), py::arg("pack"));
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
         std::optional<TensorView> bias) {
        run(wint4_linear_silu_and_mul,
            {.out = out, .x = x, .weight = weight, .scale = scale, .bias = bias},
            {&out, &x, &weight, &scale, pointer_to(bias)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"));
  // One op: whether it packs, the shape of `out` says.
  for (const char* name : {"wint4_quantize", "wint4_quantize_and_pack"})
    m.def(
        name,
        [](TensorView out, TensorView scale, TensorView weight) {
          run(wint4_quantize, {.out = out, .scale = scale, .weight = weight},
              {&out, &scale, &weight});
        },
        py::arg("out"), py::arg("scale"), py::arg("weight"));
  m.def(
      "wint4_pack",
      [](TensorView out, TensorView weight) {
        run(wint4_pack, {.out = out, .weight = weight}, {&out, &weight});
      },
      py::arg("out"), py::arg("weight"));
}

}  // namespace ernie::bindings
