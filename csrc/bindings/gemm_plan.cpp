// What linear and wint8_linear would launch on a GPU, for tests on machines without one; and the
// switch it obeys.
#include <pybind11/pybind11.h>

#include "bindings/tensor.h"
#include "core/batch_invariant.h"
#include "cuda/gemm/config.h"
#include "cuda/wint8/config.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

py::dict dict_of(const cuda::GemmConfig& c) {
  py::dict d;
  d["kernel"] = cuda::name_of(c.kernel);
  d["aligned"] = c.aligned;
  d["tile_tokens"] = c.tile_tokens;
  d["tile_features"] = c.tile_features;
  d["tile_k"] = c.tile_k;
  d["stages"] = c.stages;
  d["threads"] = c.threads;
  d["slice"] = c.slice;
  d["token_blocks"] = c.token_blocks;
  d["feature_blocks"] = c.feature_blocks;
  d["shared_bytes"] = c.shared_bytes;
  d["text"] = cuda::to_string(c);
  return d;
}

}  // namespace

void bind_gemm_plan(py::module_& m) {
  m.def("batch_invariant", &batch_invariant);
  m.def("set_batch_invariant", &set_batch_invariant, py::arg("on"));
  m.attr("GEMM_SLICES") = cuda::kGemmSlices;
  m.def(
      "cuda_gemm_plan",
      [](int64_t num_tokens, int64_t out_features, int64_t in_features, const std::string& x,
         const std::string& weight, const std::string& out, bool inputs_aligned,
         bool outputs_aligned, bool invariant, bool has_cutlass, int capability, int sm_count) {
        return dict_of(cuda::plan_gemm({.num_tokens = num_tokens,
                                        .out_features = out_features,
                                        .in_features = in_features,
                                        .x = dtype_named(x, "x"),
                                        .weight = dtype_named(weight, "weight"),
                                        .out = dtype_named(out, "out"),
                                        .inputs_aligned = inputs_aligned,
                                        .outputs_aligned = outputs_aligned,
                                        .batch_invariant = invariant,
                                        .has_cutlass = has_cutlass,
                                        .capability = capability,
                                        .sm_count = sm_count}));
      },
      py::arg("num_tokens"), py::arg("out_features"), py::arg("in_features"),
      py::arg("x") = "bfloat16", py::arg("weight") = "bfloat16", py::arg("out") = "bfloat16",
      py::arg("inputs_aligned") = true, py::arg("outputs_aligned") = true,
      py::arg("batch_invariant") = false, py::arg("has_cutlass") = true, py::arg("capability") = 90,
      py::arg("sm_count") = 132);
  m.def(
      "cuda_wint8_plan",
      [](int64_t num_tokens, int64_t out_features, int64_t in_features, const std::string& x,
         bool inputs_aligned, bool invariant, int capability, int sm_count) {
        return dict_of(cuda::plan_wint8({.num_tokens = num_tokens,
                                         .out_features = out_features,
                                         .in_features = in_features,
                                         .x = dtype_named(x, "x"),
                                         .weight = DType::kI8,
                                         .inputs_aligned = inputs_aligned,
                                         .batch_invariant = invariant,
                                         .capability = capability,
                                         .sm_count = sm_count}));
      },
      py::arg("num_tokens"), py::arg("out_features"), py::arg("in_features"),
      py::arg("x") = "bfloat16", py::arg("inputs_aligned") = true,
      py::arg("batch_invariant") = false, py::arg("capability") = 90, py::arg("sm_count") = 132);
}

}  // namespace ernie::bindings
