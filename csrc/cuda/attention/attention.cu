#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cuda/attention/config.h"
#include "cuda/attention/params.cuh"
#include "ops/attention.h"

namespace ernie::cuda {
namespace {

bool aligned(const TensorView& t, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(t.data) % bytes == 0;
}

// Rows of a [tokens, heads, head_dim] tensor start at multiples of `bytes` and fill them.
bool rows_aligned(const TensorView& t, int64_t bytes) {
  const int64_t elements = bytes / size_of(t.dtype);
  return aligned(t, static_cast<uintptr_t>(bytes)) && t.size(2) % elements == 0 &&
         t.step(0) % elements == 0 && t.step(1) % elements == 0;
}

// What both ops have; c is the plan of the call.
template <class Args>
AttentionParams params_of(const Args& a, const AttentionShape& s, const AttentionConfig& c) {
  AttentionParams p{};
  p.out = a.out.data;
  p.query = a.query.data;
  p.out_token_stride = a.out.step(0);
  p.out_head_stride = a.out.step(1);
  p.query_token_stride = a.query.step(0);
  p.query_head_stride = a.query.step(1);
  p.num_tokens = s.num_tokens;
  p.tiles_per_seq = c.tiles_per_seq;
  p.num_splits = c.num_splits;
  p.split_size = c.split_size;
  p.min_split_size = c.min_split_size;
  p.num_seqs = static_cast<int32_t>(s.num_seqs);
  p.num_heads = static_cast<int32_t>(s.num_heads);
  p.num_kv_heads = static_cast<int32_t>(s.num_kv_heads);
  p.group_size = p.num_heads / p.num_kv_heads;
  p.head_dim = static_cast<int32_t>(s.head_dim);
  // Scores are scaled after their maximum is taken, which wants a factor above zero. With FLT_MIN
  // for 0, scores below 2^100 are all equal, as they should be, and -inf stays -inf.
  p.scale_log2 = std::max(std::fabs(a.scale) * 1.44269504088896340736f, FLT_MIN);
  p.query_sign = a.scale < 0 ? 0x8000u : 0u;
  p.ragged = c.ragged;
  p.merge_in_block = c.merge_in_block;
  p.query_aligned = rows_aligned(a.query, 16);
  p.out_aligned = rows_aligned(a.out, 4);
  return p;
}

void set_cache(const AttentionArgs& a, AttentionParams& p) {
  p.key.data = a.k_cache.data;
  p.value.data = a.v_cache.data;
  p.cu_seqlens_q = a.cu_seqlens_q.ptr<int32_t>();
  p.seq_lens = a.seq_lens.ptr<int32_t>();
  p.block_table = a.block_table.ptr<int32_t>();
  p.num_blocks = a.k_cache.size(0);
  p.max_blocks = a.block_table.size(1);
  p.block_size_log2 = std::countr_zero(static_cast<uint64_t>(a.k_cache.size(2)));
  p.keys_aligned = a.k_cache.size(3) % 8 == 0 && aligned(a.k_cache, 16) && aligned(a.v_cache, 16);
  p.causal = a.causal;
}

void set_segments(const VarlenAttentionArgs& a, AttentionParams& p) {
  p.key = {a.key.data, a.key.step(0), a.key.step(1)};
  p.value = {a.value.data, a.value.step(0), a.value.step(1)};
  p.cu_seqlens_q = a.cu_seqlens.ptr<int32_t>();
  p.keys_aligned = rows_aligned(a.key, 16) && rows_aligned(a.value, 16);
}

void set_workspace(const TensorView& workspace, AttentionParams& p) {
  // Sums first: both parts keep the alignment of the first, as head_dim is even.
  const auto start = reinterpret_cast<uintptr_t>(workspace.data);
  const uintptr_t skip = (kAttentionWorkspaceAlignment - start % kAttentionWorkspaceAlignment) %
                         kAttentionWorkspaceAlignment;
  p.partial_out = reinterpret_cast<float*>(start + skip);
  p.partial_state = reinterpret_cast<RowState*>(p.partial_out + p.num_splits * p.num_tokens *
                                                                    p.num_heads * p.head_dim);
}

void check_grid(const char* op, const AttentionConfig& c) {
  constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1, kMaxGridY = 65535;
  if (c.grid_x > kMaxGridX || c.grid_y > kMaxGridY)
    throw ArgumentError(std::string(op) + ": query: expected at most " + std::to_string(kMaxGridX) +
                        " tiles of " + std::to_string(c.tile_m) + " rows and " +
                        std::to_string(kMaxGridY) + " kv heads, got " + std::to_string(c.grid_x) +
                        " and " + std::to_string(c.grid_y));
}

// Rows of no sequence would stay as they were.
void check_rows(const char* max_seqlen, const char* num_seqs, const AttentionShape& s) {
  if (saturating_mul(s.num_seqs, s.max_seqlen_q) < s.num_tokens)
    throw ArgumentError(std::string(max_seqlen) + ": expected the rows of " + num_seqs + "=" +
                        std::to_string(s.num_seqs) + " sequences to reach num_tokens=" +
                        std::to_string(s.num_tokens) + ", got " + std::to_string(s.max_seqlen_q));
}

using Launcher = void (*)(const AttentionConfig&, const AttentionParams&, cudaStream_t);

// By padded head_dim.
Launcher pick(const AttentionConfig& c, Launcher d64, Launcher d80, Launcher d128, Launcher d256) {
  return c.padded_head_dim == 64    ? d64
         : c.padded_head_dim == 80  ? d80
         : c.padded_head_dim == 128 ? d128
                                    : d256;
}

template <class Keys>
Launcher tile_launcher(const AttentionConfig& c) {
  return c.kernel == AttentionKernel::kPrefill
             ? pick(c, launch_attention_prefill<64, Keys>, launch_attention_prefill<80, Keys>,
                    launch_attention_prefill<128, Keys>, launch_attention_prefill<256, Keys>)
             : pick(c, launch_attention_float32<64, Keys>, launch_attention_float32<128, Keys>,
                    launch_attention_float32<128, Keys>, launch_attention_float32<256, Keys>);
}

}  // namespace

int64_t attention_workspace_size(const AttentionShape& shape) {
  // The switch may change before the workspace is used.
  AttentionShape s = shape;
  s.batch_invariant = !shape.batch_invariant;
  return std::max(plan_attention(shape).workspace_bytes, plan_attention(s).workspace_bytes);
}

void attention(const AttentionArgs& a, const Stream& stream) {
  const AttentionShape shape =
      attention_shape(a.query, a.k_cache, a.seq_lens, a.max_seqlen_q, a.max_seq_len);
  const AttentionConfig c = plan_attention(shape);
  check_grid("attention", c);
  check_rows("attention: max_seqlen_q", "num_seqs", shape);

  const DeviceGuard guard(stream.device);
  AttentionParams p = params_of(a, shape, c);
  set_cache(a, p);
  if (c.num_splits > 1) set_workspace(a.workspace, p);
  const Launcher launcher = c.kernel == AttentionKernel::kDecode
                                ? pick(c, launch_attention_decode<64>, launch_attention_decode<80>,
                                       launch_attention_decode<128>, launch_attention_decode<256>)
                                : tile_launcher<PagedKeys>(c);
  launcher(c, p, stream_of(stream));
  if (c.num_splits > 1)
    a.query.dtype == DType::kBF16 ? launch_attention_combine<bf16>(p, stream_of(stream))
                                  : launch_attention_combine<float>(p, stream_of(stream));
}

void varlen_attention(const VarlenAttentionArgs& a, const Stream& stream) {
  const AttentionShape shape = {.bfloat16 = a.query.dtype == DType::kBF16,
                                .num_tokens = a.query.size(0),
                                .num_heads = a.query.size(1),
                                .num_kv_heads = a.key.size(1),
                                .head_dim = a.query.size(2),
                                .num_seqs = a.cu_seqlens.size(0) - 1,
                                .max_seqlen_q = a.max_seqlen,
                                .max_seq_len = a.max_seqlen,
                                .batch_invariant = false};
  const AttentionConfig c = plan_varlen_attention(shape);
  check_grid("varlen_attention", c);
  check_rows("varlen_attention: max_seqlen", "num_segments", shape);

  const DeviceGuard guard(stream.device);
  AttentionParams p = params_of(a, shape, c);
  set_segments(a, p);
  tile_launcher<SegmentKeys>(c)(c, p, stream_of(stream));
}

}  // namespace ernie::cuda
