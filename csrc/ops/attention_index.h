// Which keys a row sees, how a sequence is cut into splits, where a token lies in the cache: the
// integers that every attention kernel shares. All 64-bit, and total in what lies in a device's
// memory (lengths, ids): bad values there lead to wrong rows, never to a wild address. What a plan
// or a shape gives (extents, num_splits, sizes of splits) is at least 1.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ernie {

// A split begins at a multiple of this, and so never inside a page or a key tile.
inline constexpr int64_t kAttentionSplitUnit = 64;

struct AttentionKeyRange {
  int64_t begin, end;
};

ERNIE_HOST_DEVICE inline int64_t attention_clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Query row i of num_queries, the last tokens of seq_len, sees the keys below this.
ERNIE_HOST_DEVICE inline int64_t attention_key_limit(int64_t seq_len, int64_t num_queries,
                                                     int64_t i, bool causal) {
  return causal ? attention_clamp(seq_len - num_queries + i + 1, 0, seq_len) : seq_len;
}

// Keys per split of a sequence: `fixed` where that is not 0; else even shares for num_splits, of
// at least `minimum` keys (a multiple of the unit).
ERNIE_HOST_DEVICE inline int64_t attention_split_size(int64_t seq_len, int64_t num_splits,
                                                      int64_t fixed, int64_t minimum) {
  if (fixed != 0) return fixed;
  const int64_t share = seq_len / num_splits + (seq_len % num_splits != 0);
  const int64_t rounded =
      (share + kAttentionSplitUnit - 1) / kAttentionSplitUnit * kAttentionSplitUnit;
  return rounded < minimum ? minimum : rounded;
}

// How many of num_splits have work. The first always has, so that every row is written.
ERNIE_HOST_DEVICE inline int64_t attention_active_splits(int64_t seq_len, int64_t num_splits,
                                                         int64_t split_size) {
  return attention_clamp(seq_len / split_size + (seq_len % split_size != 0), 1, num_splits);
}

ERNIE_HOST_DEVICE inline AttentionKeyRange attention_split_range(int64_t seq_len, int64_t split,
                                                                 int64_t split_size) {
  const int64_t begin = attention_clamp(split * split_size, 0, seq_len);
  return {begin, attention_clamp(begin + split_size, begin, seq_len)};
}

// Element offset of a row of one head in [num_blocks, num_kv_heads, block_size, head_dim]. A block
// id out of range is taken for the nearest one in range.
ERNIE_HOST_DEVICE inline int64_t kv_cache_offset(int64_t block, int64_t kv_head, int64_t row,
                                                 int64_t num_blocks, int64_t num_kv_heads,
                                                 int64_t block_size, int64_t head_dim) {
  block = attention_clamp(block, 0, num_blocks - 1);
  return ((block * num_kv_heads + kv_head) * block_size + row) * head_dim;
}

}  // namespace ernie
