// What a block works on, and what becomes of its sums.
#pragma once

#include "cuda/activation_functions.cuh"
#include "cuda/common.cuh"
#include "cuda/grouped_gemm/kernels.h"
#include "cuda/vector.cuh"

namespace ernie::cuda {

struct RowTile {
  int expert;  // -1: none
  ExpertRows rows;
};

// Row tile `index` of all experts', for every thread of the block. Each thread counts the tiles of
// one of kThreads experts at a time: one round for up to that many, a load and two barriers.
template <int kThreads>
__device__ __forceinline__ RowTile find_row_tile(const GroupedOperands& p, int tile_rows,
                                                 int64_t index) {
  constexpr int kWarps = kThreads / kWarpSize;
  ERNIE_SHARED(int64_t, counts, [kWarps]);
  ERNIE_SHARED(RowTile, found, [1]);
  if (threadIdx.x == 0) found[0] = {-1, {0, 0}};
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int64_t earlier = 0;
  for (int base = 0; base < p.num_experts && earlier <= index; base += kThreads) {
    const int expert = base + static_cast<int>(threadIdx.x);
    ExpertRows rows = {0, 0};
    if (expert < p.num_experts)
      rows = expert_rows(p.expert_offsets[expert], p.expert_offsets[expert + 1], p.num_rows);
    const int tiles = row_tiles(rows.count, tile_rows);
    int64_t end = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int64_t below = __shfl_up_sync(0xffffffffu, end, offset);
      if (lane >= offset) end += below;
    }
    if (lane == kWarpSize - 1) counts[warp] = end;
    __syncthreads();
    end += earlier;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) end += counts[w];
      earlier += counts[w];
    }
    if (index < end && end - tiles <= index)
      found[0] = {expert, row_tile(rows, static_cast<int>(index - (end - tiles)), tile_rows)};
    __syncthreads();
  }
  return found[0];
}

// Where row `row` of all experts' lies in x, in elements.
__device__ __forceinline__ int64_t x_offset(const GroupedOperands& p, int row) {
  const int64_t source =
      p.source_rows == nullptr ? row : source_row(p.source_rows[row], p.num_source_rows);
  return source * p.x_stride;
}

// What the sums of a weight's row are multiplied by: `unit` times its scale, if it has one.
__device__ __forceinline__ float factor_of(const GroupedOperands& p, int expert,
                                           int64_t rows_of_weight, int64_t row, float unit) {
  return p.scale == nullptr ? 1.f : p.scale[expert * rows_of_weight + row] * unit;
}

// Rounded once; gated, as the two ops do: both sums, and then their product.
template <class T>
__device__ __forceinline__ void store_sum(const GroupedOperands& p, int row, int64_t output,
                                          float sum) {
  static_cast<T*>(p.out)[row * p.out_stride + output] = from_float<T>(sum);
}
template <class T>
__device__ __forceinline__ void store_gated(const GroupedOperands& p, int row, int64_t output,
                                            float gate, float up) {
  store_sum<T>(p, row, output, silu(round_to<T>(gate)) * round_to<T>(up));
}

}  // namespace ernie::cuda
