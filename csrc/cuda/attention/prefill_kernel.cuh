// Many query rows. A block has 64 kMTiles rows, tokens times the query heads of one kv head, and
// all keys they see (or a split of them); a warp has 16 kMTiles of the rows. Key tiles go through a
// ring of two stages, one block barrier each: while the tensor cores work on one, the next arrives.
//
// What a row gets depends on its own query and keys alone: tiles lie at multiples of their size
// from key 0, tiles that a row does not see leave its state as it is, and with merge_in_block the
// state starts afresh at each multiple of kAttentionSplit, just as if another block had taken over.
//
// 4 * head_dim * keys flops per row, bound by the tensor cores' mma.sync rate and, with kMTiles 1,
// by shared memory, which a warp reads whole for its 16 rows.
#pragma once

#include "cuda/attention/keys.cuh"
#include "cuda/attention/mask.cuh"
#include "cuda/attention/output.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/tile.cuh"

namespace ernie::cuda {

template <int kHeadDim, int kMTiles>
struct PrefillTile {
  static constexpr int kWarps = 4;
  static constexpr int kWarpRows = 16 * kMTiles;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kHeadDim <= 128 ? 64 : 32;
  static constexpr int kWarpKeys = kKeys / kWarps;  // that a warp copies: within one page
  static constexpr int kStages = 2;
  static constexpr int kTileElements = kKeys * kTileStride<kHeadDim>;  // of keys, or of values
  static constexpr int kQueryElements = kRows * kTileStride<kHeadDim>;
  static constexpr int kSharedBytes =
      (kQueryElements + kStages * 2 * kTileElements) * int{sizeof(bf16)};
  // merge_in_block: each thread's sums of the splits before, out of the registers' way.
  static constexpr int kTotalBytes = kRows * kHeadDim * int{sizeof(float)};
  static_assert(kWarps * kWarpSize == kAttentionThreads, "one block size for all kernels");
  static_assert(kAttentionSplit % kKeys == 0, "a split ends with a tile");
};

template <int kHeadDim, int kMTiles, class Keys>
__device__ __forceinline__ void load_prefill_tile(bf16* stage, const AttentionParams& p,
                                                  Keys& source, int tile_key, int key_end) {
  using Tile = PrefillTile<kHeadDim, kMTiles>;
  if (tile_key >= key_end) return;
  const int warp = threadIdx.x / kWarpSize;
  const int key = tile_key + warp * Tile::kWarpKeys;
  const int num_valid = min(Tile::kWarpKeys, key_end - key);
  // Without a valid row there is no place to ask for: zeros only.
  const int place = num_valid > 0 ? key : tile_key;
  const bf16* const keys = source.template rows<bf16>(p.key, place);
  const bf16* const values = source.template rows<bf16>(p.value, place);
  if (key + Tile::kKeys < key_end) source.fetch(key + Tile::kKeys);
  bf16* const to = stage + warp * Tile::kWarpKeys * kTileStride<kHeadDim>;
  load_rows<kHeadDim, Tile::kWarpKeys>(to, keys, source.stride(p.key), num_valid, p.head_dim,
                                       p.keys_aligned);
  load_rows<kHeadDim, Tile::kWarpKeys>(to + Tile::kTileElements, values, source.stride(p.value),
                                       num_valid, p.head_dim, p.keys_aligned);
}

// A thread's sums and its rows' states over the splits before the present one. The sums are in
// shared memory, element i of thread t at i * kAttentionThreads + t.
template <int kOutTiles>
class SplitTotals {
 public:
  __device__ __forceinline__ void clear(float* sums) {
    sums_ = sums + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kOutTiles * 4; ++i) sums_[i * kAttentionThreads] = 0.f;
  }

  // Appends a split and leaves its state and sums as before the first key.
  __device__ __forceinline__ void append(RowState (&state)[2], float (&out)[kOutTiles][4]) {
    MergeScales scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state[half].sum = quad_sum(state[half].sum);
      scale[half] = merge(state_[half], state[half]);
      state[half] = RowState{};
    }
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = sums_[(4 * n + i) * kAttentionThreads];
        sum = merged(sum, out[n][i], scale[i / 2]);
        out[n][i] = 0.f;
      }
    }
  }

  __device__ __forceinline__ void take(RowState (&state)[2], float (&out)[kOutTiles][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) state[half] = state_[half];
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] = sums_[(4 * n + i) * kAttentionThreads];
    }
  }

 private:
  float* sums_ = nullptr;
  RowState state_[2];
};

template <int kHeadDim, int kMTiles, class Keys>
__global__ void __launch_bounds__(kAttentionThreads, kHeadDim <= 128 ? 2 : 1)
    attention_prefill_kernel(const __grid_constant__ AttentionParams p) {
  using Tile = PrefillTile<kHeadDim, kMTiles>;
  constexpr int kOutTiles = kHeadDim / 8;
  Work w;
  if (!take_work<Tile::kRows, Keys>(p, w)) return;

  ERNIE_DYNAMIC_SHARED(bf16, shared);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  bf16* const query_tile = shared;
  bf16* const ring = shared + Tile::kQueryElements;
  const auto stage = [&](int step) {
    return ring + step % Tile::kStages * 2 * Tile::kTileElements;
  };
  Keys source(p, w);
  const int first_own_key = w.key_begin + warp * Tile::kWarpKeys;
  if (first_own_key < w.key_end) source.fetch(first_own_key);
  load_prefill_tile<kHeadDim, kMTiles>(stage(0), p, source, w.key_begin, w.key_end);
  cp_async_commit_group();
  load_query<kHeadDim, Tile::kRows>(query_tile, p, w);
  // The first key a row does not see stays behind its query: the main loop, which rarely asks, has
  // no register to spare.
  const auto row_limit = [&](int row) -> int& {
    return *reinterpret_cast<int*>(query_tile + row * kTileStride<kHeadDim> + kHeadDim);
  };
  static_assert(Tile::kRows <= kAttentionThreads, "a thread for each row");
  if (threadIdx.x < Tile::kRows) row_limit(threadIdx.x) = key_limit(p, w, threadIdx.x);
  __syncthreads();

  const int warp_row = warp * Tile::kWarpRows;
  const QueryFragments<kHeadDim, kMTiles, (kMTiles == 1 && kHeadDim <= 128)> query(
      query_tile + warp_row * kTileStride<kHeadDim>);
  const int seen_by_all = key_limit(p, w, warp_row);
  const int seen_by_any =
      warp_row < w.num_rows ? key_limit(p, w, min(warp_row + Tile::kWarpRows, w.num_rows) - 1) : 0;
  RowState state[kMTiles][2];
  float out[kMTiles][kOutTiles][4] = {};
  SplitTotals<kOutTiles> totals;
  const bool merge_in_block = kMTiles == 1 && p.merge_in_block;  // see config.h
  if (merge_in_block)
    totals.clear(reinterpret_cast<float*>(ring + Tile::kStages * 2 * Tile::kTileElements));

  int step = 0;
  for (int key = w.key_begin; key < w.key_end; key += Tile::kKeys, ++step) {
    cp_async_wait_group<0>();
    __syncthreads();  // this tile is here; everybody is done with the one before
    load_prefill_tile<kHeadDim, kMTiles>(stage(step + 1), p, source, key + Tile::kKeys, w.key_end);
    cp_async_commit_group();
    if (key >= seen_by_any) continue;  // but for the barriers, this warp has nothing left to do

    const bf16* const keys = stage(step);
    float scores[kMTiles][Tile::kKeys / 8][4];
    multiply_keys<kHeadDim, Tile::kKeys, kMTiles>(scores, query, keys);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      if (key + Tile::kKeys > seen_by_all) {
        const int row = warp_row + 16 * m + lane / 4;
        const int limit[2] = {row_limit(row), row_limit(row + 8)};
        mask_scores(scores[m], key, limit);
      }
      softmax_step(scores[m], out[m], state[m], p.scale_log2);
    }
    multiply_values<kHeadDim, Tile::kKeys, kMTiles>(out, scores, keys + Tile::kTileElements);
    if (merge_in_block && (key + Tile::kKeys) % kAttentionSplit == 0)
      totals.append(state[0], out[0]);
  }
  if (merge_in_block) {
    totals.append(state[0], out[0]);
    totals.take(state[0], out[0]);
  } else {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) state[m][half].sum = quad_sum(state[m][half].sum);
    }
  }

#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + 16 * m + lane / 4 + 8 * half;
      if (row >= w.num_rows) continue;
      const RowWriter<bf16> writer(p, w, row, state[m][half]);
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        const int col = 8 * n + lane % 4 * 2;
        if (col < p.head_dim) writer.pair(col, out[m][n][2 * half], out[m][n][2 * half + 1]);
      }
      if (lane % 4 == 0) writer.state(state[m][half]);
    }
  }
}

}  // namespace ernie::cuda
