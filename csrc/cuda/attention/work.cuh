// What a block works on: the query rows of a tile and the keys of a split.
#pragma once

#include "cuda/attention/params.cuh"

namespace ernie::cuda {

struct QuerySequence {
  int64_t first_token;
  int64_t num_queries;
};

// Whatever cu_seqlens_q holds, the tokens are within the query tensor.
__device__ __forceinline__ QuerySequence query_sequence(const AttentionParams& p, int seq) {
  const int64_t begin = attention_clamp(p.cu_seqlens_q[seq], 0, p.num_tokens);
  const int64_t end = attention_clamp(p.cu_seqlens_q[seq + 1], begin, p.num_tokens);
  return {begin, end - begin};
}

struct Work {
  int64_t first_token, num_queries;  // of the sequence
  int64_t first_query;               // of the tile, counted in the sequence
  int first_head;                    // of the tile, counted in the group
  int num_rows;
  int seq, split, kv_head;
  int seq_len;
  int key_begin, key_end;  // of the split, as far as any row of the tile sees
};

struct RowPlace {
  int64_t token;  // of the query tensor
  int64_t head;   // of all query heads
};
__device__ __forceinline__ RowPlace row_place(const AttentionParams& p, const Work& w, int row) {
  const int r = w.first_head + row;
  return {w.first_token + w.first_query + r / p.group_size,
          static_cast<int64_t>(w.kv_head) * p.group_size + r % p.group_size};
}

// The first key that row `row` of the tile does not see; 0 for rows beyond the tile's last.
__device__ __forceinline__ int key_limit(const AttentionParams& p, const Work& w, int row) {
  if (row >= w.num_rows) return 0;
  const int64_t query = w.first_query + (w.first_head + row) / p.group_size;
  return static_cast<int>(attention_key_limit(w.seq_len, w.num_queries, query, p.causal));
}

struct TilePlace {
  int seq;
  int64_t tile;
};

// Tile `slot` of those of all sequences laid end to end; seq is num_seqs beyond the last. A warp
// counts the tiles of 32 sequences at a time. A sequence's tiles come last one first: under a
// causal mask the last sees the most keys, and the longest work should start first.
template <int kRows>
__device__ __forceinline__ TilePlace find_tile(const AttentionParams& p, int64_t slot) {
  const int lane = threadIdx.x % kWarpSize;
  for (int first = 0; first < p.num_seqs; first += kWarpSize) {
    const int seq = first + lane;
    const int64_t num_queries = seq < p.num_seqs ? query_sequence(p, seq).num_queries : 0;
    const int64_t tiles = ceil_div(num_queries * p.group_size, kRows);
    int64_t end = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int64_t before = __shfl_up_sync(0xffffffffu, end, offset);
      if (lane >= offset) end += before;
    }
    const unsigned beyond = __ballot_sync(0xffffffffu, slot < end);
    if (beyond != 0) {
      const int owner = __ffs(static_cast<int>(beyond)) - 1;
      return {first + owner, __shfl_sync(0xffffffffu, end, owner) - 1 - slot};
    }
    slot -= __shfl_sync(0xffffffffu, end, kWarpSize - 1);
  }
  return {p.num_seqs, 0};
}

// False where the block has nothing to do, the same for all its threads.
template <int kRows, class Keys>
__device__ __forceinline__ bool take_work(const AttentionParams& p, Work& w) {
  const int64_t slot = blockIdx.x / p.num_splits;
  w.split = static_cast<int>(blockIdx.x % p.num_splits);
  w.kv_head = blockIdx.y;
  TilePlace place = {static_cast<int>(slot / p.tiles_per_seq),
                     p.tiles_per_seq - 1 - slot % p.tiles_per_seq};
  if (p.ragged) place = find_tile<kRows>(p, slot);
  if (place.seq >= p.num_seqs) return false;

  const QuerySequence sequence = query_sequence(p, place.seq);
  w.seq = place.seq;
  w.first_token = sequence.first_token;
  w.num_queries = sequence.num_queries;
  const int64_t first_row = place.tile * kRows;
  const int64_t rows = w.num_queries * p.group_size - first_row;
  if (rows <= 0) return false;
  w.num_rows = static_cast<int>(rows < kRows ? rows : kRows);
  w.first_query = first_row / p.group_size;
  w.first_head = static_cast<int>(first_row % p.group_size);

  const int64_t seq_len = Keys::count(p, place.seq);
  w.seq_len = static_cast<int>(seq_len);
  AttentionKeyRange keys = {0, seq_len};
  if (p.num_splits > 1) {
    const int64_t size =
        attention_split_size(seq_len, p.num_splits, p.split_size, p.min_split_size);
    if (w.split >= attention_active_splits(seq_len, p.num_splits, size)) return false;
    keys = attention_split_range(seq_len, w.split, size);
  }
  const int seen = key_limit(p, w, w.num_rows - 1);
  w.key_begin = static_cast<int>(keys.begin);
  w.key_end = static_cast<int>(seen < keys.end ? seen : keys.end);
  return true;
}

}  // namespace ernie::cuda
