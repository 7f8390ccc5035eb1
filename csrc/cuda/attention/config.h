// Which kernel an attention call runs, on what grid, with how much workspace: shapes in, numbers
// out, no CUDA. A plan depends on what the host knows alone (never on seq_lens), so a captured
// graph stays valid while sequences grow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "core/checked.h"
#include "core/error.h"
#include "ops/attention.h"
#include "ops/attention_index.h"

namespace ernie::cuda {

enum class AttentionKernel {
  kDecode,   // few query rows: the warps of a block share the keys
  kPrefill,  // many query rows: the warps of a block share the rows
  kFloat32,  // float32, any number of rows
};

struct AttentionConfig {
  AttentionKernel kernel;
  int64_t padded_head_dim;  // the instantiation: 64, 80, 128 or 256
  int64_t tile_m;           // query rows (token x head of the group) per block
  int64_t tile_n;           // keys per step of a block
  int64_t tiles_per_seq;    // tiles of the longest query sequence
  int64_t tile_slots;       // tiles the grid has room for
  bool ragged;              // tiles are found by walking cu_seqlens_q
  int64_t num_splits;       // blocks that share the keys of a tile
  int64_t split_size;       // keys per split; 0: even shares of each sequence
  int64_t min_split_size;   // the least even share
  bool merge_in_block;      // one block takes the fixed splits of a tile in turn
  int64_t grid_x, grid_y;
  int64_t workspace_bytes;  // partial results; 0 without splits
};

inline constexpr int64_t kAttentionThreads = 128;
inline constexpr int64_t kAttentionWorkspaceAlignment = 16;
// A grid of two blocks for each of 132 multiprocessors fills an H200; a few more cost nothing.
inline constexpr int64_t kAttentionTargetBlocks = 264;
// Each split costs a partial result and a step of the merge: shares below these do not pay.
inline constexpr int64_t kAttentionMinDecodeSplit = 256;
inline constexpr int64_t kAttentionMinPrefillSplit = 1024;
inline constexpr int64_t kAttentionMaxSplits = 128;
inline constexpr int64_t kAttentionMaxWorkspace = int64_t{64} << 20;
// The largest padded head_dim with tiles of 128 rows: beyond, their accumulators leave no registers
// for the rest, which the addresses of segments are more of.
inline constexpr int64_t kAttentionWidePages = 128, kAttentionWideSegments = 80;
// Up to two tiles of 16 rows, the second reading of the cache comes from L2.
inline constexpr int64_t kAttentionMaxDecodeRows = 32;

// For values >= 0.
inline int64_t saturating_mul(int64_t a, int64_t b) {
  int64_t product;
  return checked_mul(a, b, &product) ? product : std::numeric_limits<int64_t>::max();
}
inline int64_t saturating_add(int64_t a, int64_t b) {
  return a > std::numeric_limits<int64_t>::max() - b ? std::numeric_limits<int64_t>::max() : a + b;
}

// Each split holds head_dim sums, a maximum and a denominator per row, in float32.
inline int64_t attention_partial_bytes(const AttentionShape& s, int64_t num_splits) {
  const int64_t rows = saturating_mul(s.num_tokens, s.num_heads);
  const int64_t row_bytes = saturating_mul(saturating_add(s.head_dim, 2), sizeof(float));
  return saturating_add(saturating_mul(saturating_mul(rows, num_splits), row_bytes),
                        kAttentionWorkspaceAlignment);
}

inline void plan_attention_tiles(const AttentionShape& s, int64_t tile_m, AttentionConfig* c) {
  const int64_t group_size = s.num_heads / s.num_kv_heads;
  c->tile_m = tile_m;
  c->tiles_per_seq = ceil_div(saturating_mul(s.max_seqlen_q, group_size), tile_m);
  // A sequence of n rows has at most n / tile_m + 1 tiles: with one long sequence among many short
  // ones that is far less than the longest times their number.
  const int64_t packed =
      saturating_add(saturating_mul(s.num_tokens, group_size) / tile_m, s.num_seqs);
  const int64_t rectangular = saturating_mul(s.num_seqs, c->tiles_per_seq);
  c->ragged = packed < rectangular;
  c->tile_slots = std::min(packed, rectangular);
}

inline void plan_attention_splits(const AttentionShape& s, AttentionConfig* c) {
  const int64_t blocks = saturating_mul(c->tile_slots, s.num_kv_heads);
  const bool few_rows =
      saturating_mul(s.max_seqlen_q, s.num_heads / s.num_kv_heads) <= kAttentionMaxDecodeRows;
  c->num_splits = 1;
  c->split_size = 0;
  c->min_split_size = few_rows ? kAttentionMinDecodeSplit : kAttentionMinPrefillSplit;
  c->merge_in_block = false;
  if (s.batch_invariant) {
    // The same splits and the same order of merging, whether one block does it or many.
    const int64_t splits = std::max(ceil_div(s.max_seq_len, kAttentionSplit), int64_t{1});
    const bool spread = few_rows && attention_partial_bytes(s, splits) <= kAttentionMaxWorkspace;
    c->split_size = kAttentionSplit;
    c->num_splits = spread ? splits : 1;
    c->merge_in_block = !spread;
  } else {
    // Rounded down: all blocks at once, rather than a few in a second round.
    const int64_t wanted = kAttentionTargetBlocks / std::max(blocks, int64_t{1});
    const int64_t useful = ceil_div(s.max_seq_len, c->min_split_size);
    const int64_t affordable = kAttentionMaxWorkspace / attention_partial_bytes(s, 1);
    c->num_splits =
        std::max(std::min({wanted, useful, affordable, kAttentionMaxSplits}), int64_t{1});
  }
  c->workspace_bytes = c->num_splits > 1 ? attention_partial_bytes(s, c->num_splits) : 0;
}

// Throws ArgumentError for what is no shape: a negative extent, or no kv head.
inline void check_attention_shape(const char* op, const AttentionShape& s) {
  const auto at_least = [op](const char* name, int64_t value, int64_t least) {
    if (value < least)
      throw ArgumentError(std::string(op) + ": " + name + ": expected at least " +
                          std::to_string(least) + ", got " + std::to_string(value));
  };
  at_least("num_tokens", s.num_tokens, 0);
  at_least("num_heads", s.num_heads, 0);
  at_least("num_kv_heads", s.num_kv_heads, 1);
  at_least("head_dim", s.head_dim, 0);
  at_least("num_seqs", s.num_seqs, 0);
  at_least("max_seqlen_q", s.max_seqlen_q, 0);
  at_least("max_seq_len", s.max_seq_len, 0);
}

inline int64_t padded_head_dim(const AttentionShape& s) {
  return s.head_dim <= 64                 ? 64
         : s.head_dim <= 80 && s.bfloat16 ? 80
         : s.head_dim <= 128              ? 128
                                          : 256;
}

inline void plan_attention_float32(const AttentionShape& s, AttentionConfig* c) {
  c->kernel = AttentionKernel::kFloat32;
  c->tile_n = 32;
  plan_attention_tiles(s, 16, c);
}

inline void plan_attention_prefill(const AttentionShape& s, int64_t widest, AttentionConfig* c) {
  c->kernel = AttentionKernel::kPrefill;
  c->tile_n = c->padded_head_dim > 128 ? 32 : 64;
  plan_attention_tiles(s, 128, c);
  // The wider tile reads shared memory half as often; it leaves no registers for a second set of
  // sums either, and full tiles alone must half fill the machine.
  const int64_t full_tiles =
      saturating_mul(s.num_tokens, s.num_heads / s.num_kv_heads) / c->tile_m - s.num_seqs;
  if (c->padded_head_dim > widest || s.batch_invariant ||
      saturating_mul(std::max(full_tiles, int64_t{0}), s.num_kv_heads) < kAttentionTargetBlocks / 2)
    plan_attention_tiles(s, 64, c);
}

inline void plan_attention_grid(const AttentionShape& s, AttentionConfig* c) {
  c->grid_x = saturating_mul(c->tile_slots, c->num_splits);
  c->grid_y = s.num_kv_heads;
}

// Total: sizes that no memory holds saturate. Throws as check_attention_shape does.
inline AttentionConfig plan_attention(const AttentionShape& s) {
  check_attention_shape("attention", s);
  AttentionConfig c{};
  c.padded_head_dim = padded_head_dim(s);
  const int64_t rows = saturating_mul(s.max_seqlen_q, s.num_heads / s.num_kv_heads);
  if (!s.bfloat16) {
    plan_attention_float32(s, &c);
  } else if (rows <= kAttentionMaxDecodeRows && !s.batch_invariant) {
    c.kernel = AttentionKernel::kDecode;
    c.tile_n = 64;
    plan_attention_tiles(s, 16, &c);
  } else {
    plan_attention_prefill(s, kAttentionWidePages, &c);
  }
  plan_attention_splits(s, &c);
  plan_attention_grid(s, &c);
  return c;
}

// The same for segments. They have as many keys as queries: a segment long enough to be split has
// tiles enough to fill the machine without. One kernel and no splits make a row's result its own,
// so s.batch_invariant stays false.
inline AttentionConfig plan_varlen_attention(const AttentionShape& s) {
  check_attention_shape("varlen_attention", s);
  AttentionConfig c{};
  c.padded_head_dim = padded_head_dim(s);
  s.bfloat16 ? plan_attention_prefill(s, kAttentionWideSegments, &c)
             : plan_attention_float32(s, &c);
  c.num_splits = 1;
  plan_attention_grid(s, &c);
  return c;
}

}  // namespace ernie::cuda
