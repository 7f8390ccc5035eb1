#include "ops/moe.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "ops/moe_core.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using Number = Scalar<int64_t>;

// The results are made before the op checks its arguments: what they are made of is checked here.
int64_t within(const char* op, const char* name, const Number& number, int64_t most) {
  const int64_t n = number.get(op, name);
  if (n < 1 || n > most)
    Check(op).fail(name, "a value from 1 to " + std::to_string(most), std::to_string(n));
  return n;
}

py::tuple moe_route_out(const TensorView& router_logits, const Number& top_k) {
  Check("moe_route").rank("router_logits", router_logits, 2);
  const Stream stream = stream_of({&router_logits});
  const int64_t num_tokens = router_logits.size(0);
  const int64_t k = within("moe_route", "top_k", top_k, kMoeMaxExperts);
  return py::make_tuple(empty({num_tokens, k}, DType::kF32, stream),
                        empty({num_tokens, k}, DType::kI32, stream));
}

// The places of entries: expert_offsets, inverse, source_rows.
py::tuple moe_sort_out(const TensorView& topk_ids, const Number& num_experts, const char* op) {
  Check(op).rank("topk_ids", topk_ids, 2);
  const Stream stream = stream_of({&topk_ids});
  const int64_t experts = within(op, "num_experts", num_experts, kMoeMaxExperts);
  return py::make_tuple(empty({experts + 1}, DType::kI64, stream),
                        empty({topk_ids.size(0), topk_ids.size(1)}, DType::kI32, stream),
                        empty({topk_ids.numel()}, DType::kI32, stream));
}

// Checked before the workspace is made.
Tensor moe_sort_workspace(const char* op, const TensorView& topk_ids, const Number& num_experts,
                          const Stream& stream) {
  Check(op).rank("topk_ids", topk_ids, 2);
  const int64_t bytes = moe_sort_workspace_size(
      stream.device, topk_ids.numel(), within(op, "num_experts", num_experts, kMoeMaxExperts));
  return empty({bytes}, DType::kU8, stream);
}

void bind_route(py::module_& m) {
  m.def("moe_route_out", &moe_route_out, py::arg("router_logits"), py::arg("top_k"));
  m.def(
      "moe_route",
      [](TensorView topk_weights, TensorView topk_ids, std::optional<TensorView> flags,
         TensorView router_logits, TensorView correction_bias, std::optional<TensorView> banks,
         Number num_banks, Number top_k, Scalar<float> norm_min) {
        run(moe_route,
            {.topk_weights = topk_weights,
             .topk_ids = topk_ids,
             .flags = flags,
             .router_logits = router_logits,
             .correction_bias = correction_bias,
             .banks = banks,
             .num_banks = num_banks.get("moe_route", "num_banks"),
             .top_k = top_k.get("moe_route", "top_k"),
             .norm_min = norm_min.get("moe_route", "norm_min")},
            {&topk_weights, &topk_ids, pointer_to(flags), &router_logits, &correction_bias,
             pointer_to(banks)});
      },
      py::arg("topk_weights"), py::arg("topk_ids"), py::arg("flags"), py::arg("router_logits"),
      py::arg("correction_bias"), py::arg("banks"), py::arg("num_banks"), py::arg("top_k"),
      py::arg("norm_min"));
}

void bind_sort(py::module_& m) {
  m.def("moe_sort_out", &moe_sort_out, py::arg("topk_ids"), py::arg("num_experts"), py::arg("op"));
  m.def(
      "moe_sort",
      [](TensorView expert_offsets, TensorView inverse, TensorView source_rows, TensorView topk_ids,
         Number num_experts) {
        const Stream stream = stream_of({&expert_offsets, &inverse, &source_rows, &topk_ids});
        const Tensor workspace = moe_sort_workspace("moe_sort", topk_ids, num_experts, stream);
        run(moe_sort,
            {.expert_offsets = expert_offsets,
             .inverse = inverse,
             .source_rows = source_rows,
             .topk_ids = topk_ids,
             .num_experts = num_experts.value,
             .workspace = workspace.view},
            {&expert_offsets, &inverse, &source_rows, &topk_ids});
      },
      py::arg("expert_offsets"), py::arg("inverse"), py::arg("source_rows"), py::arg("topk_ids"),
      py::arg("num_experts"));
}

void bind_dispatch(py::module_& m) {
  m.def(
      "moe_dispatch_out",
      [](TensorView hidden_states, TensorView topk_ids) {
        const Check check("moe_dispatch");
        check.rank("hidden_states", hidden_states, 2);
        check.rank("topk_ids", topk_ids, 2);
        return empty({topk_ids.numel(), hidden_states.size(1)}, hidden_states.dtype,
                     stream_of({&hidden_states, &topk_ids}));
      },
      py::arg("hidden_states"), py::arg("topk_ids"));
  m.def(
      "moe_dispatch",
      [](TensorView permuted, TensorView expert_offsets, TensorView inverse,
         TensorView hidden_states, TensorView topk_ids, Number num_experts) {
        const Stream stream =
            stream_of({&permuted, &expert_offsets, &inverse, &hidden_states, &topk_ids});
        const Tensor workspace = moe_sort_workspace("moe_dispatch", topk_ids, num_experts, stream);
        run(moe_dispatch,
            {.permuted = permuted,
             .hidden_states = hidden_states,
             .sort = {.expert_offsets = expert_offsets,
                      .inverse = inverse,
                      .source_rows = std::nullopt,
                      .topk_ids = topk_ids,
                      .num_experts = num_experts.value,
                      .workspace = workspace.view}},
            {&permuted, &expert_offsets, &inverse, &hidden_states, &topk_ids});
      },
      py::arg("permuted"), py::arg("expert_offsets"), py::arg("inverse"), py::arg("hidden_states"),
      py::arg("topk_ids"), py::arg("num_experts"));
}

void bind_combine(py::module_& m) {
  m.def(
      "moe_combine_out",
      [](TensorView x, TensorView inverse) {
        const Check check("moe_combine");
        check.rank("x", x, 2);
        check.rank("inverse", inverse, 2);
        return empty({inverse.size(0), x.size(1)}, x.dtype, stream_of({&x, &inverse}));
      },
      py::arg("x"), py::arg("inverse"));
  m.def(
      "moe_combine",
      [](TensorView out, TensorView x, std::optional<TensorView> shared, TensorView topk_weights,
         TensorView inverse) {
        run(moe_combine,
            {.out = out,
             .x = x,
             .shared = shared,
             .topk_weights = topk_weights,
             .inverse = inverse},
            {&out, &x, pointer_to(shared), &topk_weights, &inverse});
      },
      py::arg("out"), py::arg("x"), py::arg("shared"), py::arg("topk_weights"), py::arg("inverse"));
}

}  // namespace

void bind_moe(py::module_& m) {
  bind_route(m);
  bind_sort(m);
  bind_dispatch(m);
  bind_combine(m);
}

}  // namespace ernie::bindings
