#include "ops/attention.h"

#include <cmath>
#include <string>

#include "core/batch_invariant.h"
#include "core/check.h"
#include "core/dispatch.h"
#include "core/memory.h"

namespace ernie {

namespace {

void check_query(const Check& check, const TensorView& query) {
  check.rank("query", query, 3);
  check.dtype("query", query, {DType::kF32, DType::kBF16});
  check.inner_contiguous("query", query);
  const int64_t head_dim = query.size(2);
  if (head_dim < 2 || head_dim > 256 || head_dim % 2 != 0)
    check.fail("query", "an even head_dim from 2 to 256", "shape " + shape_string(query));
}

void check_group(const Check& check, const char* kv, int64_t num_kv_heads, int64_t num_heads) {
  if (num_kv_heads < 1 || num_heads % num_kv_heads != 0)
    check.fail(kv, "num_kv_heads that divides num_heads=" + std::to_string(num_heads),
               std::to_string(num_kv_heads));
}

void check_indices(const Check& check, const char* name, const TensorView& t,
                   std::initializer_list<Dim> extents) {
  check.shape(name, t, extents);
  check.dtype(name, t, {DType::kI32});
  check.contiguous(name, t);
}

// All other tensors of the call are `inputs`.
void check_out(const Check& check, const TensorView& out, const TensorView& query,
               std::initializer_list<Check::Named> inputs, const Stream& stream) {
  check.shape(
      "out", out,
      {{"num_tokens", query.size(0)}, {"num_heads", query.size(1)}, {"head_dim", query.size(2)}});
  check.dtype("out", out, {query.dtype});
  check.inner_contiguous("out", out);
  check.writable("out", out);
  check.device(stream.device, {{"out", &out}, {"query", &query}});
  check.device(stream.device, inputs);
  check.disjoint("out", out, "query", query);
  for (const auto& [name, t] : inputs) check.disjoint("out", out, name, *t);
}

void check_scale(const Check& check, float scale) {
  if (!std::isfinite(scale)) check.fail("scale", "a finite value", std::to_string(scale));
}

// Where there is nothing to write the CPU still holds the lengths against each other.
bool is_done(const TensorView& out, const Stream& stream) {
  return out.numel() == 0 && stream.device.type == DeviceType::kCuda;
}

}  // namespace

AttentionShape attention_shape(const TensorView& query, const TensorView& k_cache,
                               const TensorView& seq_lens, int64_t max_seqlen_q,
                               int64_t max_seq_len) {
  return {.bfloat16 = query.dtype == DType::kBF16,
          .num_tokens = query.size(0),
          .num_heads = query.size(1),
          .num_kv_heads = k_cache.size(1),
          .head_dim = query.size(2),
          .num_seqs = seq_lens.size(0),
          .max_seqlen_q = max_seqlen_q,
          .max_seq_len = max_seq_len,
          .batch_invariant = batch_invariant()};
}

int64_t attention_workspace_size(Device device, const AttentionShape& shape) {
  if (device.type == DeviceType::kCpu) return 0;
#if ERNIE_WITH_CUDA
  return cuda::attention_workspace_size(shape);
#else
  (void)shape;
  raise_no_cuda("attention: " + to_string(device));
#endif
}

void attention(const AttentionArgs& a, const Stream& stream) {
  const Check check("attention");
  check_query(check, a.query);
  const int64_t num_tokens = a.query.size(0), head_dim = a.query.size(2);

  check.rank("k_cache", a.k_cache, 4);
  const int64_t num_blocks = a.k_cache.size(0), num_kv_heads = a.k_cache.size(1);
  const int64_t block_size = a.k_cache.size(2);
  if (block_size != 16 && block_size != 32 && block_size != 64)
    check.fail("k_cache", "block_size 16, 32 or 64", std::to_string(block_size));
  for (const auto& [name, t] : {Check::Named{"k_cache", &a.k_cache}, {"v_cache", &a.v_cache}}) {
    check.shape(name, *t,
                {{"num_blocks", num_blocks},
                 {"num_kv_heads", num_kv_heads},
                 {"block_size", block_size},
                 {"head_dim", head_dim}});
    check.dtype(name, *t, {a.query.dtype});
    check.contiguous(name, *t);
  }
  check_group(check, "k_cache", num_kv_heads, a.query.size(1));

  check.rank("seq_lens", a.seq_lens, 1);
  const int64_t num_seqs = a.seq_lens.size(0);
  check_indices(check, "seq_lens", a.seq_lens, {{"num_seqs", num_seqs}});
  check_indices(check, "cu_seqlens_q", a.cu_seqlens_q, {{"num_seqs + 1", num_seqs + 1}});
  check.rank("block_table", a.block_table, 2);
  check_indices(check, "block_table", a.block_table,
                {{"num_seqs", num_seqs}, {"max_blocks", a.block_table.size(1)}});
  check.dtype("workspace", a.workspace, {DType::kU8});
  check.contiguous("workspace", a.workspace);
  check_out(check, a.out, a.query,
            {{"k_cache", &a.k_cache},
             {"v_cache", &a.v_cache},
             {"cu_seqlens_q", &a.cu_seqlens_q},
             {"seq_lens", &a.seq_lens},
             {"block_table", &a.block_table},
             {"workspace", &a.workspace}},
            stream);
  if (a.max_seqlen_q < 0 || a.max_seqlen_q > num_tokens)
    check.fail("max_seqlen_q", "0 to num_tokens=" + std::to_string(num_tokens),
               std::to_string(a.max_seqlen_q));
  const int64_t capacity = a.block_table.size(1) * block_size;
  if (a.max_seq_len < 0 || a.max_seq_len > capacity)
    check.fail("max_seq_len",
               "0 to max_blocks * block_size=" + std::to_string(capacity) + " of block_table",
               std::to_string(a.max_seq_len));
  check_scale(check, a.scale);
  const int64_t needed = attention_workspace_size(
      stream.device,
      attention_shape(a.query, a.k_cache, a.seq_lens, a.max_seqlen_q, a.max_seq_len));
  if (a.workspace.numel() < needed)
    check.fail("workspace", std::to_string(needed) + " bytes", std::to_string(a.workspace.numel()));
  if (is_done(a.out, stream)) return;
  dispatch("attention", {&cpu::attention, ERNIE_CUDA_FN(cuda::attention)}, a, stream);
}

void varlen_attention(const VarlenAttentionArgs& a, const Stream& stream) {
  const Check check("varlen_attention");
  check_query(check, a.query);
  const int64_t num_tokens = a.query.size(0);
  check.rank("key", a.key, 3);
  const int64_t num_kv_heads = a.key.size(1);
  for (const auto& [name, t] : {Check::Named{"key", &a.key}, {"value", &a.value}}) {
    check.shape(name, *t,
                {{"num_tokens", num_tokens},
                 {"num_kv_heads", num_kv_heads},
                 {"head_dim", a.query.size(2)}});
    check.dtype(name, *t, {a.query.dtype});
    check.inner_contiguous(name, *t);
  }
  check_group(check, "key", num_kv_heads, a.query.size(1));

  check.rank("cu_seqlens", a.cu_seqlens, 1);
  check_indices(check, "cu_seqlens", a.cu_seqlens, {{"num_segments + 1", a.cu_seqlens.size(0)}});
  if (a.cu_seqlens.size(0) < 1) check.fail("cu_seqlens", "1 value or more", "none");

  check_out(check, a.out, a.query,
            {{"key", &a.key}, {"value", &a.value}, {"cu_seqlens", &a.cu_seqlens}}, stream);
  if (a.max_seqlen < 0 || a.max_seqlen > num_tokens)
    check.fail("max_seqlen", "0 to num_tokens=" + std::to_string(num_tokens),
               std::to_string(a.max_seqlen));
  check_scale(check, a.scale);
  if (is_done(a.out, stream)) return;
  dispatch("varlen_attention", {&cpu::varlen_attention, ERNIE_CUDA_FN(cuda::varlen_attention)}, a,
           stream);
}

}  // namespace ernie
