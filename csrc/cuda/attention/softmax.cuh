// Online softmax to base 2: a row's state, one step over the scores of a key tile, and the merge of
// two states. Every kernel merges by the one function here, so that who merges does not matter.
#pragma once

#include "cuda/common.cuh"
#include "cuda/ptx.cuh"

namespace ernie::cuda {

// sum_j 2^(s_j - max) over the scores s_j seen so far; max is -inf before the first.
struct RowState {
  float max = -INFINITY;
  float sum = 0.f;
};

// What to subtract from scores: a row that has seen no key has only -inf, and -inf - 0 = -inf.
__device__ __forceinline__ float finite_max(float max) { return max == -INFINITY ? 0.f : max; }

// Appends `part` to `total`. The caller scales its sums likewise: merged(). Written with fused
// operations throughout, so that each copy the compiler makes rounds alike.
struct MergeScales {
  float total, part;
};
__device__ __forceinline__ MergeScales merge(RowState& total, const RowState& part) {
  const float max = fmaxf(total.max, part.max);
  const MergeScales scale = {exp2f(total.max - finite_max(max)), exp2f(part.max - finite_max(max))};
  total = {max, fmaf(part.sum, scale.part, __fmul_rn(total.sum, scale.total))};
  return scale;
}
__device__ __forceinline__ float merged(float total, float part, const MergeScales& scale) {
  return fmaf(part, scale.part, __fmul_rn(total, scale.total));
}

// 1 / sum, or 0 for a row that sees no key: its sums are zero already.
__device__ __forceinline__ float inverse_sum(const RowState& state) {
  return state.sum == 0.f ? 0.f : 1.f / state.sum;
}

// The four lanes that share the rows of an mma fragment.
__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// Turns a warp's raw scores of 16 rows (mma accumulators) into probabilities relative to the new
// maximum and rescales `out`. A lane has rows lane / 4 and lane / 4 + 8, and in `state[].sum` only
// the keys of its own columns: quad_sum() completes it.
template <int kKeyTiles, int kOutTiles>
__device__ __forceinline__ void softmax_step(float (&scores)[kKeyTiles][4],
                                             float (&out)[kOutTiles][4], RowState (&state)[2],
                                             float scale_log2) {
  float rescale[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float tile_max = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
      tile_max = fmaxf(tile_max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    const float max = fmaxf(state[half].max, __fmul_rn(quad_max(tile_max), scale_log2));
    rescale[half] = ex2_approx(state[half].max - finite_max(max));
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = ex2_approx(fmaf(scores[n][i], scale_log2, -finite_max(max)));
        sum += scores[n][i];
      }
    }
    state[half] = {max, fmaf(state[half].sum, rescale[half], sum)};
  }
  // The maximum rarely moves after the first keys; multiplying by one is then left out.
  if (__any_sync(0xffffffffu, rescale[0] != 1.f || rescale[1] != 1.f)) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= rescale[i / 2];
    }
  }
}

}  // namespace ernie::cuda
