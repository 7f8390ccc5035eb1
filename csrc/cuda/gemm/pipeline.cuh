// What kernels that bring tiles through shared memory share: the stages, and the slices of K.
#pragma once

#include <cuda_runtime.h>

#include "cuda/ptx.cuh"

namespace ernie::cuda {

// Where a chunk of x lies among the kChunks of its row. The eight lanes that shared memory serves
// at once read chunks kChunks / 4 apart of two neighbouring rows: swapped like this they cover all
// banks.
template <int kChunks>
__device__ __forceinline__ int place_of(int row, int chunk) {
  const int swap = kChunks == 4 ? 0 : kChunks == 8 ? row & 1 : (row & 1) << 1 | chunk >> 3;
  return row * kChunks + (chunk ^ swap);
}

// Calls `use(stage, step)` for every step of K in order, when what `load(stage, step)` brought is
// there: copies of cp_async or stores, begun kStages - 1 steps ahead. All threads of the block come
// here together; a stage is of kStageChunks chunks.
template <int kStages, int kStageChunks, class Load, class Use>
__device__ __forceinline__ void for_each_stage(uint4* stages, int steps, const Load& load,
                                               const Use& use) {
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(stages + s * kStageChunks, s);
    cp_async_commit_group();
  }
  for (int step = 0; step < steps; ++step) {
    cp_async_wait_group<kStages - 2>();
    __syncthreads();  // this step's tiles are there, and all have left the stage that is refilled
    const int next = step + kStages - 1;
    if (next < steps) load(stages + next % kStages * kStageChunks, next);
    cp_async_commit_group();  // empty at the end: the count of groups is what is waited for
    use(stages + step % kStages * kStageChunks, step);
  }
}

// The sums of a lane, of which `acc` are those of the slice of K that is being summed. Slices end
// in `total` one after the other, which gives the bits of the kernels that sum them side by side.
template <int kRows, int kColumns>
struct SlicedSums {
  float acc[kRows][kColumns][4] = {};
  float total[kRows][kColumns][4] = {};
  const int steps_per_slice;
  int left_in_slice = steps_per_slice;

  __device__ __forceinline__ explicit SlicedSums(int steps) : steps_per_slice(steps) {}

  // After the products of each step of K.
  __device__ __forceinline__ void end_step(bool is_last) {
    if (--left_in_slice != 0 && !is_last) return;
    left_in_slice = steps_per_slice;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[r][c][i] += acc[r][c][i];
          acc[r][c][i] = 0.f;
        }
  }
};

}  // namespace ernie::cuda
