// Which scores count. By selection, not by arithmetic: whatever a masked score is, NaN too, it
// goes.
#pragma once

#include "cuda/common.cuh"

namespace ernie::cuda {

// Scores of 16 rows (mma accumulators) with the keys from first_key on; limit[half] is the first
// key that row lane / 4 + 8 half does not see.
template <int kKeyTiles>
__device__ __forceinline__ void mask_scores(float (&scores)[kKeyTiles][4], int first_key,
                                            const int (&limit)[2]) {
  const int key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scores[n][i] = key + 8 * n + i % 2 < limit[i / 2] ? scores[n][i] : -INFINITY;
  }
}

}  // namespace ernie::cuda
