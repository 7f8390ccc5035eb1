// Merges the splits' partial results, in ascending order. A warp has 32 columns of one row of out;
// it reads the row's states once and its 128 bytes of each split's sums, several at a time: the
// kernel is a few hundred KB of latency, not of bandwidth.
#pragma once

#include "cuda/attention/keys.cuh"
#include "cuda/attention/output.cuh"
#include "cuda/attention/softmax.cuh"

namespace ernie::cuda {

constexpr int kCombineWarps = 4;

// The sequence of a token: the last one that begins at or before it and is not empty.
__device__ __forceinline__ int sequence_of(const AttentionParams& p, int64_t token) {
  int low = 0, high = p.num_seqs;  // cu_seqlens_q[low] <= token < cu_seqlens_q[high]
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (p.cu_seqlens_q[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// How split s is scaled when it is merged depends on the maxima of splits 0 .. s
// alone: the lanes work it out for 32 splits at once, and the sums then follow one by one.
template <class T>
__global__ void __launch_bounds__(kCombineWarps* kWarpSize)
    attention_combine_kernel(const __grid_constant__ AttentionParams p) {
  const int lane = threadIdx.x % kWarpSize;
  const int slices = (p.head_dim + kWarpSize - 1) / kWarpSize;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kCombineWarps + threadIdx.x / kWarpSize;
  const int64_t num_rows = p.num_tokens * p.num_heads;
  const int64_t row = item / slices;
  if (row >= num_rows) return;
  const int64_t token = row / p.num_heads, head = row % p.num_heads;
  const int col = static_cast<int>(item % slices) * kWarpSize + lane;
  const bool valid = col < p.head_dim;

  const int64_t seq_len = PagedKeys::count(p, sequence_of(p, token));
  const int64_t size = attention_split_size(seq_len, p.num_splits, p.split_size, p.min_split_size);
  const int num_active = static_cast<int>(attention_active_splits(seq_len, p.num_splits, size));

  const float* sums = p.partial_out + row * p.head_dim + col;
  const int64_t split_stride = num_rows * p.head_dim;
  RowState total;
  float out = 0.f;
  for (int first = 0; first < num_active; first += kWarpSize) {
    const int count = min(kWarpSize, num_active - first);
    const RowState mine =
        lane < count ? p.partial_state[(first + lane) * num_rows + row] : RowState{};
    // Lane l: the maximum before split first + l (from l = 0 on) and with it.
    float before = total.max, with = fmaxf(before, mine.max);
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, with, offset);
      if (lane >= offset) with = fmaxf(with, other);
    }
    const float left = __shfl_up_sync(0xffffffffu, with, 1);
    if (lane > 0) before = left;
    RowState prior = {before, 0.f};
    const MergeScales my_scale = merge(prior, mine);

    constexpr int kAtOnce = 16;
    for (int j = 0; j < count; j += kAtOnce) {
      float part[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        part[i] = valid && j + i < count ? sums[(first + j + i) * split_stride] : 0.f;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int from = min(j + i, kWarpSize - 1);
        const MergeScales scale = {__shfl_sync(0xffffffffu, my_scale.total, from),
                                   __shfl_sync(0xffffffffu, my_scale.part, from)};
        const float part_sum = __shfl_sync(0xffffffffu, mine.sum, from);
        if (j + i < count) {
          total.sum = merged(total.sum, part_sum, scale);
          out = merged(out, part[i], scale);
        }
      }
    }
    total.max = __shfl_sync(0xffffffffu, with, count - 1);
  }
  if (valid)
    store(static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride + col,
          out * inverse_sum(total));
}

}  // namespace ernie::cuda
