// Launches of the bfloat16 kernels, instantiated by one file per head_dim and place of the keys.
#pragma once

#include "cuda/attention/decode_kernel.cuh"
#include "cuda/attention/prefill_kernel.cuh"

namespace ernie::cuda {

inline LaunchConfig attention_grid(const AttentionConfig& c, int64_t shared_bytes,
                                   cudaStream_t stream) {
  return {.grid = dim3(static_cast<unsigned>(c.grid_x), static_cast<unsigned>(c.grid_y)),
          .block = dim3(static_cast<unsigned>(kAttentionThreads)),
          .smem = static_cast<size_t>(shared_bytes),
          .stream = stream};
}

template <int kHeadDim>
void launch_attention_decode(const AttentionConfig& c, const AttentionParams& p,
                             cudaStream_t stream) {
  launch(attention_decode_kernel<kHeadDim>,
         attention_grid(c, DecodeTile<kHeadDim>::kSharedBytes, stream), p);
}

template <int kHeadDim, class Keys>
void launch_attention_prefill(const AttentionConfig& c, const AttentionParams& p,
                              cudaStream_t stream) {
  if constexpr (kHeadDim <= Keys::kWideHeadDim) {
    using Wide = PrefillTile<kHeadDim, 2>;
    if (c.tile_m == Wide::kRows) {
      launch(attention_prefill_kernel<kHeadDim, 2, Keys>,
             attention_grid(c, Wide::kSharedBytes, stream), p);
      return;
    }
  }
  using Tile = PrefillTile<kHeadDim, 1>;
  const int totals = c.merge_in_block ? Tile::kTotalBytes : 0;
  launch(attention_prefill_kernel<kHeadDim, 1, Keys>,
         attention_grid(c, Tile::kSharedBytes + totals, stream), p);
}

}  // namespace ernie::cuda
