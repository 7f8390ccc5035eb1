// The plan of a CUDA attention call and the index arithmetic of all attention kernels, for tests:
// both are pure host functions, compiled in builds without CUDA too.
#include <pybind11/pybind11.h>

#include <limits>
#include <utility>

#include "core/check.h"
#include "cuda/attention/config.h"
#include "ops/attention_index.h"

namespace py = pybind11;

namespace ernie::bindings {

namespace {

const char* name_of(cuda::AttentionKernel kernel) {
  switch (kernel) {
    case cuda::AttentionKernel::kDecode:
      return "decode";
    case cuda::AttentionKernel::kPrefill:
      return "prefill";
    case cuda::AttentionKernel::kFloat32:
      return "float32";
  }
  return "";
}

py::dict plan_dict(const cuda::AttentionConfig& c) {
  py::dict d;
  d["kernel"] = name_of(c.kernel);
  d["padded_head_dim"] = c.padded_head_dim;
  d["tile_m"] = c.tile_m;
  d["tile_n"] = c.tile_n;
  d["tiles_per_seq"] = c.tiles_per_seq;
  d["tile_slots"] = c.tile_slots;
  d["ragged"] = c.ragged;
  d["num_splits"] = c.num_splits;
  d["split_size"] = c.split_size;
  d["min_split_size"] = c.min_split_size;
  d["merge_in_block"] = c.merge_in_block;
  d["grid"] = py::make_tuple(c.grid_x, c.grid_y);
  d["workspace_bytes"] = c.workspace_bytes;
  return d;
}

py::dict plan(bool bfloat16, int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
              int64_t head_dim, int64_t num_seqs, int64_t max_seqlen_q, int64_t max_seq_len,
              bool batch_invariant) {
  return plan_dict(cuda::plan_attention({.bfloat16 = bfloat16,
                                         .num_tokens = num_tokens,
                                         .num_heads = num_heads,
                                         .num_kv_heads = num_kv_heads,
                                         .head_dim = head_dim,
                                         .num_seqs = num_seqs,
                                         .max_seqlen_q = max_seqlen_q,
                                         .max_seq_len = max_seq_len,
                                         .batch_invariant = batch_invariant}));
}

py::dict varlen_plan(bool bfloat16, int64_t num_tokens, int64_t num_heads, int64_t num_kv_heads,
                     int64_t head_dim, int64_t num_segments, int64_t max_seqlen) {
  return plan_dict(cuda::plan_varlen_attention({.bfloat16 = bfloat16,
                                                .num_tokens = num_tokens,
                                                .num_heads = num_heads,
                                                .num_kv_heads = num_kv_heads,
                                                .head_dim = head_dim,
                                                .num_seqs = num_segments,
                                                .max_seqlen_q = max_seqlen,
                                                .max_seq_len = max_seqlen,
                                                .batch_invariant = false}));
}

// What the formulas take from a caller that has checked it.
void check_range(const Check& check, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    check.fail(name, std::to_string(low) + " to " + std::to_string(high), std::to_string(value));
}

constexpr int64_t kMaxLength = int64_t{1} << 48;  // sums of a few of them fit 64 bits

py::list splits(int64_t seq_len, int64_t num_splits, int64_t fixed, int64_t minimum) {
  const Check check("attention_splits");
  check_range(check, "seq_len", seq_len, 0, kMaxLength);
  check_range(check, "num_splits", num_splits, 1, 1 << 16);
  check_range(check, "fixed", fixed, 0, kMaxLength);
  check_range(check, "minimum", minimum, 1, kMaxLength);
  const int64_t size = attention_split_size(seq_len, num_splits, fixed, minimum);
  py::list ranges;
  for (int64_t split = 0; split < attention_active_splits(seq_len, num_splits, size); ++split) {
    const AttentionKeyRange range = attention_split_range(seq_len, split, size);
    ranges.append(py::make_tuple(range.begin, range.end));
  }
  return ranges;
}

int64_t key_limit(int64_t seq_len, int64_t num_queries, int64_t i, bool causal) {
  const Check check("attention_key_limit");
  check_range(check, "seq_len", seq_len, 0, kMaxLength);
  check_range(check, "num_queries", num_queries, 0, kMaxLength);
  check_range(check, "i", i, 0, kMaxLength);
  return attention_key_limit(seq_len, num_queries, i, causal);
}

int64_t cache_offset(int64_t block, int64_t kv_head, int64_t row, int64_t num_blocks,
                     int64_t num_kv_heads, int64_t block_size, int64_t head_dim) {
  const Check check("kv_cache_offset");
  int64_t elements = 1;
  for (const auto& [name, extent] : {std::pair{"num_blocks", num_blocks},
                                     {"num_kv_heads", num_kv_heads},
                                     {"block_size", block_size},
                                     {"head_dim", head_dim}}) {
    check_range(check, name, extent, 1, std::numeric_limits<int64_t>::max() / elements);
    elements *= extent;
  }
  check_range(check, "kv_head", kv_head, 0, num_kv_heads - 1);
  check_range(check, "row", row, 0, block_size - 1);
  return kv_cache_offset(block, kv_head, row, num_blocks, num_kv_heads, block_size, head_dim);
}

}  // namespace

void bind_attention_plan(py::module_& m) {
  m.def("cuda_attention_plan", &plan, py::kw_only(), py::arg("bfloat16"), py::arg("num_tokens"),
        py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("num_seqs"),
        py::arg("max_seqlen_q"), py::arg("max_seq_len"), py::arg("batch_invariant"));
  m.def("cuda_varlen_attention_plan", &varlen_plan, py::kw_only(), py::arg("bfloat16"),
        py::arg("num_tokens"), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"),
        py::arg("num_segments"), py::arg("max_seqlen"));
  m.def("attention_splits", &splits, py::kw_only(), py::arg("seq_len"), py::arg("num_splits"),
        py::arg("fixed"), py::arg("minimum"));
  m.def("attention_key_limit", &key_limit, py::arg("seq_len"), py::arg("num_queries"), py::arg("i"),
        py::arg("causal"));
  m.def("kv_cache_offset", &cache_offset, py::kw_only(), py::arg("block"), py::arg("kv_head"),
        py::arg("row"), py::arg("num_blocks"), py::arg("num_kv_heads"), py::arg("block_size"),
        py::arg("head_dim"));
}

}  // namespace ernie::bindings
