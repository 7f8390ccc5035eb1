// float32, any number of query rows: plain fused multiply-adds, no TF32. A block has 16 rows, eight
// threads each, and walks key tiles of 32; thread c of a row scores keys c, c + 8, ... and owns
// columns c, c + 8, ... of the sums. Splits and their merge are those of the bfloat16 kernels.
#pragma once

#include "cuda/attention/keys.cuh"
#include "cuda/attention/output.cuh"
#include "cuda/attention/softmax.cuh"

namespace ernie::cuda {

struct Float32Tile {
  static constexpr int kRows = 16;
  static constexpr int kKeys = 32;
  static constexpr int kRowThreads = 8;
  static_assert(kRows * kRowThreads == kAttentionThreads, "one block size for all kernels");
  static_assert(kAttentionSplit % kKeys == 0, "a split ends with a tile");
};

// An odd row stride: eight keys of one column lie in eight banks.
template <int kHeadDim>
constexpr int kFloat32Stride = kHeadDim + 1;
template <int kHeadDim>
constexpr int kFloat32SharedBytes =
    ((Float32Tile::kRows + 2 * Float32Tile::kKeys) * kFloat32Stride<kHeadDim> +
     Float32Tile::kRows * (Float32Tile::kKeys + 1)) *
    int{sizeof(float)};

// The block copies kKeys rows of keys, or values; zeros beyond the last key and beyond head_dim.
template <int kHeadDim, class Keys>
__device__ __forceinline__ void load_float32_keys(float* tile, const AttentionParams& p, Keys& keys,
                                                  const AttentionSource& source, int first_key,
                                                  int key_end) {
  for (int i = threadIdx.x; i < Float32Tile::kKeys * kHeadDim; i += kAttentionThreads) {
    const int row = i / kHeadDim, col = i % kHeadDim, key = first_key + row;
    float value = 0.f;
    if (key < key_end && col < p.head_dim) {
      keys.fetch(key);
      value = keys.template rows<float>(source, key)[col];
    }
    tile[row * kFloat32Stride<kHeadDim> + col] = value;
  }
}

__device__ __forceinline__ float row_max(float v) {
#pragma unroll
  for (int offset = 1; offset < Float32Tile::kRowThreads; offset *= 2)
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
  for (int offset = 1; offset < Float32Tile::kRowThreads; offset *= 2)
    v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Blocks that shall fit: left alone, ptxas takes two more of the smaller heads, and spills on
// sm_80.
template <int kHeadDim>
constexpr int kFloat32Blocks = kHeadDim <= 128 ? 6 : 4;

template <int kHeadDim, class Keys>
__global__ void __launch_bounds__(kAttentionThreads, kFloat32Blocks<kHeadDim>)
    attention_float32_kernel(const __grid_constant__ AttentionParams p) {
  using Tile = Float32Tile;
  constexpr int kStride = kFloat32Stride<kHeadDim>;
  constexpr int kColumns = kHeadDim / Tile::kRowThreads;
  constexpr int kScores = Tile::kKeys / Tile::kRowThreads;
  Work w;
  if (!take_work<Tile::kRows, Keys>(p, w)) return;

  ERNIE_DYNAMIC_SHARED(float, query_tile);
  float* const keys = query_tile + Tile::kRows * kStride;
  float* const values = keys + Tile::kKeys * kStride;
  float* const probs = values + Tile::kKeys * kStride;  // [kRows, kKeys + 1]
  Keys source(p, w);
  const int row = threadIdx.x / Tile::kRowThreads, c = threadIdx.x % Tile::kRowThreads;
  const float* const my_query = query_tile + row * kStride;
  float* const my_probs = probs + row * (Tile::kKeys + 1);
  const float sign = p.query_sign != 0 ? -1.f : 1.f;

  for (int i = threadIdx.x; i < Tile::kRows * kHeadDim; i += kAttentionThreads) {
    const int r = i / kHeadDim, col = i % kHeadDim;
    float value = 0.f;
    if (r < w.num_rows && col < p.head_dim) {
      const RowPlace at = row_place(p, w, r);
      value = sign *
              static_cast<const float*>(
                  p.query)[at.token * p.query_token_stride + at.head * p.query_head_stride + col];
    }
    query_tile[r * kStride + col] = value;
  }

  const int limit = key_limit(p, w, row);
  RowState state, total_state;
  float out[kColumns] = {}, total[kColumns] = {};
  const auto append_split = [&] {
    const MergeScales scale = merge(total_state, state);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      total[i] = merged(total[i], out[i], scale);
      out[i] = 0.f;
    }
    state = RowState{};
  };

  for (int key = w.key_begin; key < w.key_end; key += Tile::kKeys) {
    __syncthreads();
    load_float32_keys<kHeadDim>(keys, p, source, p.key, key, w.key_end);
    load_float32_keys<kHeadDim>(values, p, source, p.value, key, w.key_end);
    __syncthreads();

    float score[kScores] = {};
    for (int d = 0; d < p.head_dim; ++d) {
#pragma unroll
      for (int j = 0; j < kScores; ++j)
        score[j] = fmaf(my_query[d], keys[(c + Tile::kRowThreads * j) * kStride + d], score[j]);
    }
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const bool seen = key + c + Tile::kRowThreads * j < limit;
      score[j] = seen ? __fmul_rn(score[j], p.scale_log2) : -INFINITY;
      max = fmaxf(max, score[j]);
    }
    max = fmaxf(state.max, row_max(max));
    const float rescale = exp2f(state.max - finite_max(max));
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < kScores; ++j) {
      const float prob = exp2f(score[j] - finite_max(max));
      my_probs[c + Tile::kRowThreads * j] = prob;
      sum += prob;
    }
    state = {max, fmaf(state.sum, rescale, row_sum(sum))};
    __syncwarp();  // a row's probabilities are written and read by one warp

#pragma unroll
    for (int i = 0; i < kColumns; ++i) out[i] = __fmul_rn(out[i], rescale);
    for (int j = 0; j < Tile::kKeys; ++j) {
      const float prob = my_probs[j];
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
        out[i] = fmaf(prob, values[j * kStride + c + Tile::kRowThreads * i], out[i]);
    }
    if (p.merge_in_block && (key + Tile::kKeys) % kAttentionSplit == 0) append_split();
  }
  append_split();

  if (row >= w.num_rows) return;
  const RowWriter<float> writer(p, w, row, total_state);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int col = c + Tile::kRowThreads * i;
    if (col < p.head_dim) writer.one(col, total[i]);
  }
  if (c == 0) writer.state(total_state);
}

}  // namespace ernie::cuda
