#include "ops/fused_moe.h"

#include <algorithm>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using Number = Scalar<int64_t>;

constexpr const char* kOp = "fused_moe";

Tensor fused_moe_out(const TensorView& hidden_states) {
  Check(kOp).rank("hidden_states", hidden_states, 2);
  return empty({hidden_states.size(0), hidden_states.size(1)}, hidden_states.dtype,
               stream_of({&hidden_states}));
}

// Sizes that come from Python: none is below zero.
int64_t extent(const char* name, const Number& number) {
  const int64_t n = number.get(kOp, name);
  if (n < 0) Check(kOp).fail(name, "0 or more", std::to_string(n));
  return n;
}

DType dtype_of(const char* name, const Scalar<std::string>& dtype,
               std::initializer_list<DType> known) {
  const DType type = dtype_named(dtype.get(kOp, name), (std::string(kOp) + ": " + name).c_str());
  if (std::find(known.begin(), known.end(), type) == known.end())
    Check(kOp).fail(name, "a dtype that it takes", name_of(type));
  return type;
}

int64_t workspace_size(const Scalar<std::string>& device, const Scalar<std::string>& dtype,
                       const Scalar<std::string>& weight_dtype, const Number& num_tokens,
                       const Number& top_k, const Number& num_experts, const Number& hidden_size,
                       const Number& intermediate_size) {
  const DType weight =
      dtype_of("weight_dtype", weight_dtype, {DType::kF32, DType::kBF16, DType::kI8, DType::kU8});
  return fused_moe_workspace_size(
      device_named(device.get(kOp, "device")),
      {.hidden_states = dtype_of("dtype", dtype, {DType::kF32, DType::kBF16}),
       .gate_up = weight,
       .down = weight,
       .num_tokens = extent("num_tokens", num_tokens),
       .top_k = extent("top_k", top_k),
       .num_experts = extent("num_experts", num_experts),
       .hidden_size = extent("hidden_size", hidden_size),
       .intermediate_size = extent("intermediate_size", intermediate_size)});
}

// Of a call's own tensors.
Tensor fused_moe_workspace(const TensorView& hidden_states, const TensorView& topk_ids,
                           const TensorView& w_gate_up, const TensorView& w_down,
                           const Number& intermediate_size) {
  const Check check(kOp);
  check.rank("hidden_states", hidden_states, 2);
  check.dtype("hidden_states", hidden_states, {DType::kF32, DType::kBF16});
  check.rank("topk_ids", topk_ids, 2);
  if (w_gate_up.rank < 3) check.rank("w_gate_up", w_gate_up, 3);
  const Stream stream = stream_of({&hidden_states, &topk_ids, &w_gate_up, &w_down});
  const int64_t bytes = fused_moe_workspace_size(
      stream.device, {.hidden_states = hidden_states.dtype,
                      .gate_up = w_gate_up.dtype,
                      .down = w_down.dtype,
                      .num_tokens = hidden_states.size(0),
                      .top_k = topk_ids.size(1),
                      .num_experts = w_gate_up.size(0),
                      .hidden_size = hidden_states.size(1),
                      .intermediate_size = extent("in_features", intermediate_size)});
  return empty({bytes}, DType::kU8, stream);
}

}  // namespace

void bind_fused_moe(py::module_& m) {
  m.def("fused_moe_out", &fused_moe_out, py::arg("hidden_states"));
  m.def("fused_moe_workspace_size", &workspace_size, py::arg("device"), py::arg("dtype"),
        py::arg("weight_dtype"), py::arg("num_tokens"), py::arg("top_k"), py::arg("num_experts"),
        py::arg("hidden_size"), py::arg("intermediate_size"));
  m.def("fused_moe_workspace", &fused_moe_workspace, py::arg("hidden_states"), py::arg("topk_ids"),
        py::arg("w_gate_up"), py::arg("w_down"), py::arg("intermediate_size"));
  m.def(
      kOp,
      [](TensorView out, TensorView hidden_states, TensorView topk_weights, TensorView topk_ids,
         TensorView w_gate_up, std::optional<TensorView> gate_up_scale, Number gate_up_out_features,
         Number gate_up_in_features, TensorView w_down, std::optional<TensorView> down_scale,
         Number down_out_features, Number down_in_features, std::optional<TensorView> shared,
         TensorView workspace, Scalar<bool> int8_activations) {
        run(fused_moe,
            {.out = out,
             .hidden_states = hidden_states,
             .topk_weights = topk_weights,
             .topk_ids = topk_ids,
             .gate_up = {.weight = w_gate_up,
                         .scale = gate_up_scale,
                         .out_features = gate_up_out_features.get(kOp, "out_features"),
                         .in_features = gate_up_in_features.get(kOp, "in_features")},
             .down = {.weight = w_down,
                      .scale = down_scale,
                      .out_features = down_out_features.get(kOp, "out_features"),
                      .in_features = down_in_features.get(kOp, "in_features")},
             .shared = shared,
             .workspace = workspace,
             .int8_activations = int8_activations.get(kOp, "int8_activations")},
            {&out, &hidden_states, &topk_weights, &topk_ids, &w_gate_up, pointer_to(gate_up_scale),
             &w_down, pointer_to(down_scale), pointer_to(shared), &workspace});
      },
      py::arg("out"), py::arg("hidden_states"), py::arg("topk_weights"), py::arg("topk_ids"),
      py::arg("w_gate_up"), py::arg("gate_up_scale"), py::arg("gate_up_out_features"),
      py::arg("gate_up_in_features"), py::arg("w_down"), py::arg("down_scale"),
      py::arg("down_out_features"), py::arg("down_in_features"), py::arg("shared"),
      py::arg("workspace"), py::arg("int8_activations"));
}

}  // namespace ernie::bindings
