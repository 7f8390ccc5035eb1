// What linear, wint8_linear, wint4_linear and the experts' products would launch on a GPU, for
// tests on machines without one; and the switch it obeys.
#include <pybind11/pybind11.h>

#include <algorithm>

#include "bindings/tensor.h"
#include "core/batch_invariant.h"
#include "cuda/gemm/config.h"
#include "cuda/grouped_gemm/config.h"
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

void check_range(const char* name, int64_t value, int64_t limit) {
  if (value < 0 || value >= limit)
    throw ArgumentError(std::string(name) + ": expected a value from 0 to " +
                        std::to_string(limit - 1) + ", got " + std::to_string(value));
}

// The row tiles of an expert, from its two offsets; and of tile `index` the first row and how many.
py::tuple row_tile_of(int64_t begin, int64_t end, int num_rows, int tile_rows, int index) {
  check_range("num_rows", num_rows, int64_t{1} << 31);
  check_range("tile_rows - 1", int64_t{tile_rows} - 1, 1024);
  const ExpertRows rows = expert_rows(begin, end, num_rows);
  const int tiles = row_tiles(rows.count, tile_rows);
  check_range("index", index, std::max(tiles, 1));
  const ExpertRows tile = row_tile(rows, index, tile_rows);
  return py::make_tuple(tiles, tile.begin, tile.count);
}

// The output that row `local` of a block's weight rows belongs to, and its row in the weight.
py::tuple weight_row_of(int64_t first_output, int local, bool gated, int64_t outputs) {
  check_range("first_output", first_output, int64_t{1} << 32);
  check_range("local", local, 1024);
  check_range("outputs", outputs, int64_t{1} << 32);
  const WeightRow at = weight_row(first_output, local, gated, outputs);
  return py::make_tuple(at.output, at.row);
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
         bool outputs_aligned, bool activated, bool invariant, bool has_cutlass, int capability,
         int sm_count) {
        return dict_of(cuda::plan_gemm({.num_tokens = num_tokens,
                                        .out_features = out_features,
                                        .in_features = in_features,
                                        .x = dtype_named(x, "x"),
                                        .weight = dtype_named(weight, "weight"),
                                        .out = dtype_named(out, "out"),
                                        .inputs_aligned = inputs_aligned,
                                        .outputs_aligned = outputs_aligned,
                                        .activated = activated,
                                        .batch_invariant = invariant,
                                        .has_cutlass = has_cutlass,
                                        .capability = capability,
                                        .sm_count = sm_count}));
      },
      py::arg("num_tokens"), py::arg("out_features"), py::arg("in_features"),
      py::arg("x") = "bfloat16", py::arg("weight") = "bfloat16", py::arg("out") = "bfloat16",
      py::arg("inputs_aligned") = true, py::arg("outputs_aligned") = true,
      py::arg("activated") = false, py::arg("batch_invariant") = false,
      py::arg("has_cutlass") = true, py::arg("capability") = 90, py::arg("sm_count") = 132);
  m.def(
      "cuda_wint_plan",
      [](int64_t num_tokens, int64_t out_features, int64_t in_features, const std::string& x,
         const std::string& weight, bool inputs_aligned, bool invariant, int capability,
         int sm_count) {
        return dict_of(cuda::plan_wint({.num_tokens = num_tokens,
                                        .out_features = out_features,
                                        .in_features = in_features,
                                        .x = dtype_named(x, "x"),
                                        .weight = dtype_named(weight, "weight"),
                                        .inputs_aligned = inputs_aligned,
                                        .batch_invariant = invariant,
                                        .capability = capability,
                                        .sm_count = sm_count}));
      },
      py::arg("num_tokens"), py::arg("out_features"), py::arg("in_features"),
      py::arg("x") = "bfloat16", py::arg("weight") = "int8", py::arg("inputs_aligned") = true,
      py::arg("batch_invariant") = false, py::arg("capability") = 90, py::arg("sm_count") = 132);
  m.def(
      "cuda_grouped_plan",
      [](int64_t num_rows, int64_t num_experts, int64_t out_features, int64_t in_features,
         const std::string& x, const std::string& weight, bool gated, bool gathers,
         bool inputs_aligned, bool outputs_aligned, bool invariant, int64_t workspace_bytes,
         int capability, int sm_count) {
        const cuda::GroupedProblem problem{.product = {.num_tokens = num_rows,
                                                       .out_features = out_features,
                                                       .in_features = in_features,
                                                       .x = dtype_named(x, "x"),
                                                       .weight = dtype_named(weight, "weight"),
                                                       .inputs_aligned = inputs_aligned,
                                                       .outputs_aligned = outputs_aligned,
                                                       .batch_invariant = invariant,
                                                       .capability = capability,
                                                       .sm_count = sm_count},
                                           .num_experts = num_experts,
                                           .gated = gated,
                                           .gathers = gathers,
                                           .workspace_bytes = workspace_bytes};
        py::dict d = dict_of(cuda::plan_grouped(problem));
        d["workspace"] = cuda::grouped_workspace_bytes(problem);
        return d;
      },
      py::arg("num_rows"), py::arg("num_experts"), py::arg("out_features"), py::arg("in_features"),
      py::arg("x") = "bfloat16", py::arg("weight") = "bfloat16", py::arg("gated") = false,
      py::arg("gathers") = false, py::arg("inputs_aligned") = true,
      py::arg("outputs_aligned") = true, py::arg("batch_invariant") = false,
      py::arg("workspace_bytes") = 0, py::arg("capability") = 90, py::arg("sm_count") = 132);
  m.def("cuda_grouped_row_tile", &row_tile_of, py::arg("begin"), py::arg("end"),
        py::arg("num_rows"), py::arg("tile_rows"), py::arg("index"));
  m.def("cuda_grouped_weight_row", &weight_row_of, py::arg("first_output"), py::arg("local"),
        py::arg("gated"), py::arg("outputs"));
  m.def("cuda_grouped_source_row", &source_row, py::arg("row"), py::arg("count"));
}

}  // namespace ernie::bindings
