// Few query rows over many keys. A block has up to 16 rows, all query heads of one kv head, and
// one split of the keys; each of its four warps takes every fourth group of 16 keys, streams them
// through its own ring in shared memory without waiting for the others, and keeps its own online
// softmax. The four states are merged at the end, in the order of the warps.
//
// Reads each key and value of the split once, 2 * 2 * head_dim bytes per key, and is bound by that:
// at head_dim 128 a block has 70 KiB under way and two blocks fit a multiprocessor of an H200.
#pragma once

#include "cuda/attention/keys.cuh"
#include "cuda/attention/mask.cuh"
#include "cuda/attention/output.cuh"
#include "cuda/attention/softmax.cuh"
#include "cuda/attention/tile.cuh"

namespace ernie::cuda {

template <int kHeadDim>
struct DecodeTile {
  static constexpr int kRows = 16;
  static constexpr int kWarps = 4;
  static constexpr int kKeys = 16;  // per warp and step: within one page
  static constexpr int kStages = kHeadDim <= 80 ? 4 : kHeadDim <= 128 ? 3 : 2;
  static constexpr int kStageElements = kKeys * kTileStride<kHeadDim>;  // of keys, or of values
  static constexpr int kQueryElements = kRows * kTileStride<kHeadDim>;
  static constexpr int kRingElements = kWarps * kStages * 2 * kStageElements;
  static constexpr int kSharedBytes = (kQueryElements + kRingElements) * int{sizeof(bf16)};
  static_assert(kWarps * kRows * kHeadDim * sizeof(float) <= kRingElements * sizeof(bf16),
                "the warps' sums take the ring's place at the end");
  static_assert(kWarps * kWarpSize == kAttentionThreads, "one block size for all kernels");
};

// Step `step` of a warp: its keys from first_key on, to a stage of its ring.
template <int kHeadDim>
__device__ __forceinline__ void load_decode_step(bf16* stage, const AttentionParams& p,
                                                 PagedKeys& source, int first_key, int key_end) {
  using Tile = DecodeTile<kHeadDim>;
  if (first_key >= key_end) return;
  const bf16* const keys = source.rows<bf16>(p.key, first_key);
  const bf16* const values = source.rows<bf16>(p.value, first_key);
  const int next_key = first_key + Tile::kWarps * Tile::kKeys;
  if (next_key < key_end) source.fetch(next_key);
  const int num_valid = min(Tile::kKeys, key_end - first_key);
  load_rows<kHeadDim, Tile::kKeys>(stage, keys, source.stride(p.key), num_valid, p.head_dim,
                                   p.keys_aligned);
  load_rows<kHeadDim, Tile::kKeys>(stage + Tile::kStageElements, values, source.stride(p.value),
                                   num_valid, p.head_dim, p.keys_aligned);
}

template <int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_decode_kernel(const __grid_constant__ AttentionParams p) {
  using Tile = DecodeTile<kHeadDim>;
  constexpr int kOutTiles = kHeadDim / 8;
  Work w;
  if (!take_work<Tile::kRows, PagedKeys>(p, w)) return;

  ERNIE_DYNAMIC_SHARED(bf16, shared);
  ERNIE_SHARED(RowState, warp_states, [Tile::kWarps * Tile::kRows]);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  bf16* const query_tile = shared;
  bf16* const ring = shared + Tile::kQueryElements;
  bf16* const my_ring = ring + warp * Tile::kStages * 2 * Tile::kStageElements;
  const auto stage = [&](int step) {
    return my_ring + step % Tile::kStages * 2 * Tile::kStageElements;
  };
  constexpr int kStride = Tile::kWarps * Tile::kKeys;
  const int first_key = w.key_begin + warp * Tile::kKeys;

  PagedKeys source(p, w);
  if (first_key < w.key_end) source.fetch(first_key);
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) {
    load_decode_step<kHeadDim>(stage(step), p, source, first_key + step * kStride, w.key_end);
    cp_async_commit_group();
  }
  load_query<kHeadDim, Tile::kRows>(query_tile, p, w);
  __syncthreads();

  const QueryFragments<kHeadDim, 1, (kHeadDim <= 128)> query(query_tile);
  const int limit[2] = {key_limit(p, w, lane / 4), key_limit(p, w, lane / 4 + 8)};
  const int seen_by_all = key_limit(p, w, 0);
  RowState state[2];
  float out[1][kOutTiles][4] = {};

  int step = 0;
  for (int key = first_key; key < w.key_end; key += kStride, ++step) {
    // A step's group is the oldest of kStages - 1; the warp is done with the stage before it.
    cp_async_wait_group<Tile::kStages - 2>();
    __syncwarp();
    const int ahead = Tile::kStages - 1;
    load_decode_step<kHeadDim>(stage(step + ahead), p, source, key + ahead * kStride, w.key_end);
    cp_async_commit_group();

    const bf16* const keys = stage(step);
    float scores[1][Tile::kKeys / 8][4];
    multiply_keys<kHeadDim, Tile::kKeys, 1>(scores, query, keys);
    if (key + Tile::kKeys > seen_by_all) mask_scores(scores[0], key, limit);
    softmax_step(scores[0], out[0], state, p.scale_log2);
    multiply_values<kHeadDim, Tile::kKeys, 1>(out, scores, keys + Tile::kStageElements);
  }

  // The warps' sums, [kWarps, kRows, kHeadDim], take the place of the ring. No copy to it is under
  // way: each step has waited for its own, and what was asked for beyond key_end is empty.
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * Tile::kRows + lane / 4 + 8 * half;
    state[half].sum = quad_sum(state[half].sum);
    if (lane % 4 == 0) warp_states[row] = state[half];
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n)
      *reinterpret_cast<float2*>(sums + row * kHeadDim + 8 * n + lane % 4 * 2) =
          make_float2(out[0][n][2 * half], out[0][n][2 * half + 1]);
  }
  __syncthreads();

  constexpr int kPairs = kHeadDim / 2;
  for (int i = threadIdx.x; i < w.num_rows * kPairs; i += kAttentionThreads) {
    const int row = i / kPairs, col = i % kPairs * 2;
    if (col >= p.head_dim) continue;
    RowState total;
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int from = 0; from < Tile::kWarps; ++from) {
      const int r = from * Tile::kRows + row;
      const float2 part = *reinterpret_cast<const float2*>(sums + r * kHeadDim + col);
      const MergeScales scale = merge(total, warp_states[r]);
      sum = make_float2(merged(sum.x, part.x, scale), merged(sum.y, part.y, scale));
    }
    const RowWriter<bf16> writer(p, w, row, total);
    writer.pair(col, sum.x, sum.y);
    if (col == 0) writer.state(total);
  }
}

}  // namespace ernie::cuda
