#include "ops/attention.h"

#include <cmath>
#include <optional>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

// 0 for what is no call of attention: the op itself says what is wrong.
int64_t workspace_size(const TensorView& query, const TensorView& k_cache,
                       const TensorView& seq_lens, Scalar<int64_t> max_seqlen_q,
                       Scalar<int64_t> max_seq_len) {
  const int64_t rows = max_seqlen_q.get("attention", "max_seqlen_q");
  const int64_t keys = max_seq_len.get("attention", "max_seq_len");
  if (query.rank != 3 || k_cache.rank != 4 || k_cache.size(1) < 1 || seq_lens.rank != 1 ||
      rows < 0 || keys < 0)
    return 0;
  return attention_workspace_size(query.device,
                                  attention_shape(query, k_cache, seq_lens, rows, keys));
}

// A query of the wrong shape is for the op itself to refuse.
float default_scale(const TensorView& query) {
  const bool has_head_dim = query.rank == 3 && query.size(2) > 0;
  return has_head_dim ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(query.size(2))))
                      : 1.0F;
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def(
      "attention",
      [](TensorView out, TensorView query, TensorView k_cache, TensorView v_cache,
         TensorView cu_seqlens_q, TensorView seq_lens, TensorView block_table,
         Scalar<int64_t> max_seqlen_q, Scalar<int64_t> max_seq_len,
         std::optional<Scalar<float>> scale, Scalar<bool> causal, TensorView workspace) {
        run(attention,
            {.out = out,
             .query = query,
             .k_cache = k_cache,
             .v_cache = v_cache,
             .cu_seqlens_q = cu_seqlens_q,
             .seq_lens = seq_lens,
             .block_table = block_table,
             .max_seqlen_q = max_seqlen_q.get("attention", "max_seqlen_q"),
             .max_seq_len = max_seq_len.get("attention", "max_seq_len"),
             .scale = scale ? scale->get("attention", "scale") : default_scale(query),
             .causal = causal.get("attention", "causal"),
             .workspace = workspace},
            {&out, &query, &k_cache, &v_cache, &cu_seqlens_q, &seq_lens, &block_table, &workspace});
      },
      py::arg("out"), py::arg("query"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("cu_seqlens_q"), py::arg("seq_lens"), py::arg("block_table"), py::arg("max_seqlen_q"),
      py::arg("max_seq_len"), py::arg("scale"), py::arg("causal"), py::arg("workspace"));

  m.def(
      "varlen_attention",
      [](TensorView out, TensorView query, TensorView key, TensorView value, TensorView cu_seqlens,
         Scalar<int64_t> max_seqlen, std::optional<Scalar<float>> scale) {
        run(varlen_attention,
            {.out = out,
             .query = query,
             .key = key,
             .value = value,
             .cu_seqlens = cu_seqlens,
             .max_seqlen = max_seqlen.get("varlen_attention", "max_seqlen"),
             .scale = scale ? scale->get("varlen_attention", "scale") : default_scale(query)},
            {&out, &query, &key, &value, &cu_seqlens});
      },
      py::arg("out"), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("cu_seqlens"),
      py::arg("max_seqlen"), py::arg("scale"));

  // The wrapper allocates it where the caller gives none: on the CPU it is empty, on CUDA it comes
  // from the stream's pool.
  m.def(
      "attention_workspace",
      [](TensorView out, TensorView query, TensorView k_cache, TensorView seq_lens,
         Scalar<int64_t> max_seqlen_q, Scalar<int64_t> max_seq_len) {
        const int64_t size = workspace_size(query, k_cache, seq_lens, max_seqlen_q, max_seq_len);
        return empty({size}, DType::kU8, stream_of({&out, &query, &k_cache}));
      },
      py::arg("out"), py::arg("query"), py::arg("k_cache"), py::arg("seq_lens"),
      py::arg("max_seqlen_q"), py::arg("max_seq_len"));
  m.def("attention_workspace_size", &workspace_size, py::arg("query"), py::arg("k_cache"),
        py::arg("seq_lens"), py::arg("max_seqlen_q"), py::arg("max_seq_len"));
}

}  // namespace ernie::bindings
