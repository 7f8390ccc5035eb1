#include "ops/grouped_gemm.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/checked.h"
#include "ops/moe_core.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using Number = Scalar<int64_t>;

constexpr const char* kLinear = "grouped_linear";
constexpr const char* kGated = "grouped_linear_silu_and_mul";

// The rows of `out`.
int64_t num_rows_of(const char* op, const TensorView& x,
                    const std::optional<TensorView>& source_rows) {
  Check(op).rank("x", x, 2);
  if (!source_rows) return x.size(0);
  Check(op).rank("source_rows", *source_rows, 1);
  return source_rows->size(0);
}

int64_t columns_of(const char* op, const Number& out_features) {
  const int64_t n = out_features.get(op, "out_features");
  if (n < 0) Check(op).fail("weight", "out_features of 0 or more", std::to_string(n));
  return n;
}

Tensor grouped_linear_out(const TensorView& x, const TensorView& weight,
                          const std::optional<TensorView>& source_rows,
                          const Number& out_features) {
  const int64_t num_rows = num_rows_of(kLinear, x, source_rows);
  return empty({num_rows, columns_of(kLinear, out_features)}, x.dtype, stream_of({&x, &weight}));
}

Tensor grouped_linear_silu_and_mul_out(const TensorView& x, const TensorView& weight,
                                       const std::optional<TensorView>& source_rows,
                                       const Number& out_features) {
  const int64_t num_rows = num_rows_of(kGated, x, source_rows);
  const int64_t n = columns_of(kGated, out_features);
  if (n % 2 != 0) Check(kGated).fail("weight", "an even number of out_features", std::to_string(n));
  return empty({num_rows, n / 2}, x.dtype, stream_of({&x, &weight}));
}

// Room for the product `out` = x weight^T; None where it wants none.
py::object grouped_linear_workspace(const TensorView& out, const TensorView& x,
                                    const TensorView& weight, bool gated, bool gathers) {
  const Check check(gated ? kGated : kLinear);
  check.rank("out", out, 2);
  check.rank("x", x, 2);
  if (weight.rank < 3) check.rank("weight", weight, 3);
  const Stream stream = stream_of({&x, &weight});
  const int64_t bytes = grouped_linear_workspace_size(stream.device, {.num_rows = out.size(0),
                                                                      .num_experts = weight.size(0),
                                                                      .columns = out.size(1),
                                                                      .in_features = x.size(1),
                                                                      .x = x.dtype,
                                                                      .weight = weight.dtype,
                                                                      .gated = gated,
                                                                      .gathers = gathers});
  if (bytes == 0) return py::none();
  return py::cast(empty({bytes}, DType::kU8, stream));
}

// Room for packed experts on the CPU, or for plain ones.
Tensor expert_weights_out(const Number& num_experts, const Number& out_features,
                          const Number& in_features, const Scalar<std::string>& dtype, bool pack,
                          const Scalar<std::string>& device) {
  const char* op = "expert_weights";
  const Check check(op);
  const int64_t e = num_experts.get(op, "num_experts"), n = out_features.get(op, "out_features");
  const int64_t k = in_features.get(op, "in_features");
  const auto refuse_below = [&](const char* name, int64_t value, int64_t least) {
    if (value < least) check.fail(name, std::to_string(least) + " or more", std::to_string(value));
  };
  refuse_below("num_experts", e, 1);
  if (e > kMoeMaxExperts)
    check.fail("num_experts", std::to_string(kMoeMaxExperts) + " or fewer", std::to_string(e));
  refuse_below("out_features", n, 0);
  refuse_below("in_features", k, 0);
  const Stream stream{device_named(device.get(op, "device")), nullptr};
  constexpr int64_t kPanelRows = 16;
  const int64_t panels = ceil_div(n, kPanelRows);
  switch (dtype_named(dtype.get(op, "dtype"), "expert_weights: dtype")) {
    case DType::kF32:
      return pack ? empty({e, panels, k, kPanelRows}, DType::kF32, stream)
                  : empty({e, n, k}, DType::kF32, stream);
    case DType::kBF16:
      return pack ? empty({e, panels, ceil_div(k, 2), kPanelRows, 2}, DType::kBF16, stream)
                  : empty({e, n, k}, DType::kBF16, stream);
    case DType::kI8:
      return pack ? empty({e, panels, ceil_div(k, 4), kPanelRows, 4}, DType::kI8, stream)
                  : empty({e, n, k}, DType::kI8, stream);
    case DType::kU8:
      return pack ? empty({e, panels, ceil_div(k, 8), kPanelRows, 4}, DType::kU8, stream)
                  : empty({e, n, ceil_div(k, 2)}, DType::kU8, stream);
    default:
      check.fail("dtype", "float32 or bfloat16", dtype.value);
  }
}

// `product` of arguments that have the same names in both.
template <auto product>
void bind_product(py::module_& m, const char* op) {
  m.def(
      op,
      [op](TensorView out, TensorView x, TensorView weight, std::optional<TensorView> scale,
           Number out_features, Number in_features, TensorView expert_offsets,
           std::optional<TensorView> source_rows, Scalar<bool> int8_activations,
           std::optional<TensorView> workspace) {
        run(product,
            {.out = out,
             .x = x,
             .weight = {.weight = weight,
                        .scale = scale,
                        .out_features = out_features.get(op, "out_features"),
                        .in_features = in_features.get(op, "in_features")},
             .expert_offsets = expert_offsets,
             .source_rows = source_rows,
             .int8_activations = int8_activations.get(op, "int8_activations"),
             .workspace = workspace},
            {&out, &x, &weight, pointer_to(scale), &expert_offsets, pointer_to(source_rows),
             pointer_to(workspace)});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("out_features"),
      py::arg("in_features"), py::arg("expert_offsets"), py::arg("source_rows"),
      py::arg("int8_activations"), py::arg("workspace"));
}

}  // namespace

void bind_grouped_gemm(py::module_& m) {
  m.def("grouped_linear_out", &grouped_linear_out, py::arg("x"), py::arg("weight"),
        py::arg("source_rows"), py::arg("out_features"));
  m.def("grouped_linear_silu_and_mul_out", &grouped_linear_silu_and_mul_out, py::arg("x"),
        py::arg("weight"), py::arg("source_rows"), py::arg("out_features"));
  m.def("grouped_linear_workspace", &grouped_linear_workspace, py::arg("out"), py::arg("x"),
        py::arg("weight"), py::arg("gated"), py::arg("gathers"));
  m.def("expert_weights_out", &expert_weights_out, py::arg("num_experts"), py::arg("out_features"),
        py::arg("in_features"), py::arg("dtype"), py::arg("pack"), py::arg("device"));
  bind_product<grouped_linear>(m, kLinear);
  bind_product<grouped_linear_silu_and_mul>(m, kGated);
}

}  // namespace ernie::bindings
