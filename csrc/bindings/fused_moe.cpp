#include "ops/fused_moe.h"

#include <algorithm>
#include <utility>
#include <vector>

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

// Of what is given for each bank.
void check_as_many(const char* name, size_t got, size_t expected) {
  if (got != expected)
    Check(kOp).fail(name, "one for each of " + std::to_string(expected) + " banks",
                    std::to_string(got));
}

int64_t workspace_size(const Scalar<std::string>& device, const Scalar<std::string>& dtype,
                       const std::vector<Scalar<std::string>>& weight_dtype,
                       const Number& num_tokens, const Number& top_k,
                       const std::vector<Number>& num_experts, const Number& hidden_size,
                       const std::vector<Number>& intermediate_size) {
  if (num_experts.empty()) Check(kOp).fail("num_experts", "one bank of experts or more", "none");
  check_as_many("weight_dtype", weight_dtype.size(), num_experts.size());
  check_as_many("intermediate_size", intermediate_size.size(), num_experts.size());
  FusedMoeSize size = {.hidden_states = dtype_of("dtype", dtype, {DType::kF32, DType::kBF16}),
                       .num_tokens = extent("num_tokens", num_tokens),
                       .top_k = extent("top_k", top_k),
                       .hidden_size = extent("hidden_size", hidden_size),
                       .banks = {}};
  for (size_t i = 0; i < num_experts.size(); ++i) {
    const DType weight = dtype_of("weight_dtype", weight_dtype[i],
                                  {DType::kF32, DType::kBF16, DType::kI8, DType::kU8});
    size.banks.push_back({.gate_up = weight,
                          .down = weight,
                          .num_experts = extent("num_experts", num_experts[i]),
                          .intermediate_size = extent("intermediate_size", intermediate_size[i])});
  }
  return fused_moe_workspace_size(device_named(device.get(kOp, "device")), size);
}

// The banks of a call, of which Python gives [weight, scale, out_features, in_features] each, and
// what must outlive their views.
class Banks {
 public:
  Banks(const py::list& gate_up, const py::list& down) {
    if (gate_up.size() != down.size())
      Check(kOp).fail("w_down", std::to_string(gate_up.size()) + " banks, as of w_gate_up",
                      std::to_string(down.size()));
    banks_.reserve(gate_up.size());  // tensors() points to what is in it
    for (size_t i = 0; i < gate_up.size(); ++i)
      banks_.push_back({.gate_up = experts(gate_up[i]), .down = experts(down[i])});
  }

  std::span<const ExpertBank> banks() const { return banks_; }

  // `others`, and those of all banks.
  std::vector<const TensorView*> tensors(std::initializer_list<const TensorView*> others) const {
    std::vector<const TensorView*> all;
    all.reserve(others.size() + 4 * banks_.size());
    all.assign(others);
    for (const ExpertBank& bank : banks_)
      for (const ExpertWeights* w : {&bank.gate_up, &bank.down}) {
        all.push_back(&w->weight);
        all.push_back(pointer_to(w->scale));
      }
    return all;
  }

 private:
  TensorView view(py::handle tensor) {
    py::object keep_alive;
    const TensorView view = view_of(tensor, &keep_alive);
    if (keep_alive) kept_alive_.push_back(std::move(keep_alive));
    return view;
  }

  ExpertWeights experts(py::handle given) {
    const auto fields = py::cast<py::list>(given);
    const py::handle weight = fields[0], scale = fields[1];
    return {.weight = view(weight),
            .scale = scale.is_none() ? std::nullopt : std::optional(view(scale)),
            .out_features = py::cast<Number>(fields[2]).get(kOp, "out_features"),
            .in_features = py::cast<Number>(fields[3]).get(kOp, "in_features")};
  }

  std::vector<py::object> kept_alive_;
  std::vector<ExpertBank> banks_;
};

// Of a call's own tensors.
Tensor fused_moe_workspace(const TensorView& hidden_states, const TensorView& topk_ids,
                           const py::list& gate_up, const py::list& down) {
  const Banks given(gate_up, down);
  const FusedMoeSize size = fused_moe_size(hidden_states, topk_ids, given.banks());
  const Stream stream = stream_of(given.tensors({&hidden_states, &topk_ids}));
  return empty({fused_moe_workspace_size(stream.device, size)}, DType::kU8, stream);
}

}  // namespace

void bind_fused_moe(py::module_& m) {
  m.def("fused_moe_out", &fused_moe_out, py::arg("hidden_states"));
  m.def("fused_moe_workspace_size", &workspace_size, py::arg("device"), py::arg("dtype"),
        py::arg("weight_dtype"), py::arg("num_tokens"), py::arg("top_k"), py::arg("num_experts"),
        py::arg("hidden_size"), py::arg("intermediate_size"));
  m.def("fused_moe_workspace", &fused_moe_workspace, py::arg("hidden_states"), py::arg("topk_ids"),
        py::arg("w_gate_up"), py::arg("w_down"));
  m.def(
      kOp,
      [](TensorView out, TensorView hidden_states, TensorView topk_weights, TensorView topk_ids,
         const py::list& w_gate_up, const py::list& w_down, std::optional<TensorView> shared,
         TensorView workspace, Scalar<bool> int8_activations) {
        const Banks given(w_gate_up, w_down);
        run(fused_moe,
            {.out = out,
             .hidden_states = hidden_states,
             .topk_weights = topk_weights,
             .topk_ids = topk_ids,
             .banks = given.banks(),
             .shared = shared,
             .workspace = workspace,
             .int8_activations = int8_activations.get(kOp, "int8_activations")},
            given.tensors(
                {&out, &hidden_states, &topk_weights, &topk_ids, pointer_to(shared), &workspace}));
      },
      py::arg("out"), py::arg("hidden_states"), py::arg("topk_weights"), py::arg("topk_ids"),
      py::arg("w_gate_up"), py::arg("w_down"), py::arg("shared"), py::arg("workspace"),
      py::arg("int8_activations"));
}

}  // namespace ernie::bindings
