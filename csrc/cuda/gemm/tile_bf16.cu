#include "cuda/common.cuh"
#include "cuda/gemm/fragment.cuh"
#include "cuda/gemm/kernels.h"
#include "cuda/gemm/output.cuh"
#include "cuda/gemm/pipeline.cuh"
#include "cuda/gemm/work.cuh"

namespace ernie::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kChunks = kStepK / 8;  // of one row in one step

// Brings step `k` of kTile rows of x and of the weight into one stage: two tiles of kTile rows of
// 64 bytes. Every thread moves two chunks of each. 64-byte rows need no swizzle: the eight lanes
// that shared memory serves at once read two neighbouring rows, which cover all banks.
template <int kTile, bool kAligned>
__device__ __forceinline__ void load_stage(uint4* stage, const GemmOperands& p, int token0,
                                           int feature0, int k) {
  constexpr int kThreads = 2 * kTile;
#pragma unroll
  for (int i = 0; i < 2 * kTile * kChunks / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    const bool is_x = i < kTile * kChunks / kThreads;
    const int row = at / kChunks % kTile + (is_x ? token0 : feature0);
    const bool exists = row < (is_x ? p.m : p.n);
    const bf16* source =
        is_x ? static_cast<const bf16*>(p.x) + (exists ? row * p.x_stride : 0)
             : static_cast<const bf16*>(p.weight) + (exists ? int64_t{row} * p.k : 0);
    copy_chunk<kAligned>(stage + at, source, k + 8 * (at % kChunks), exists ? p.k : 0);
  }
}

// linear for many tokens and any shape. A block owns kTile tokens by kTile features, a warp kTile /
// 2 by 32 of them; tiles of 32 k come through shared memory, four stages deep. The sums of a slice
// of K end in `total` before the next slice begins, which gives the bits of the narrow kernel.
//
// Bound by the tensor cores when aligned: a 128 x 128 block does 64 products for each KiB that it
// reads from L2. Unaligned rows are read two bytes at a time.
template <int kTile, bool kAligned>
__global__ void __launch_bounds__(2 * kTile)
    tile_bf16_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokenTiles = kTile / 2 / 16, kFeatureTiles = 4;
  constexpr int kStageChunks = 2 * kTile * kChunks;
  ERNIE_DYNAMIC_SHARED(uint4, stages);

  const TilePlace<kTile> at(token_blocks);
  const int steps = (p.k + kStepK - 1) / kStepK;
  SlicedSums<kTokenTiles, kFeatureTiles> sums(slice_length / kStepK);
  for_each_stage<kStages, kStageChunks>(
      stages, steps,
      [&](uint4* stage, int step) {
        load_stage<kTile, kAligned>(stage, p, at.token0, at.feature0, step * kStepK);
      },
      [&](const uint4* x, int step) {
        const uint4* weight = x + kTile * kChunks;
        uint4 w[kFeatureTiles];
#pragma unroll
        for (int f = 0; f < kFeatureTiles; ++f)
          w[f] = weight[(at.warp_feature + 8 * f + at.quad) * kChunks + at.chunk];
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          const int row = at.warp_token + 16 * t + at.quad;
          const uint4 x_low = x[row * kChunks + at.chunk];
          const uint4 x_high = x[(row + 8) * kChunks + at.chunk];
#pragma unroll
          for (int f = 0; f < kFeatureTiles; ++f)
            multiply_step(sums.acc[t][f], x_low, x_high, w[f]);
        }
        sums.end_step(step + 1 == steps);
      });

  static_assert(kTile * kTile <= kStages * kStageChunks * 4, "the stages hold a tile of floats");
  store_tile<bf16, kTile>(
      p, at.token0, at.feature0, reinterpret_cast<float*>(stages), [&](const auto& store) {
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
          for (int f = 0; f < kFeatureTiles; ++f)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              store(at.warp_token + 16 * t + at.quad + 8 * (i / 2),
                    at.warp_feature + 8 * f + 2 * at.chunk + i % 2, sums.total[t][f][i]);
      });
}

}  // namespace

// ------------------------------------------------------------------------------------- launcher

void launch_tile_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel = c.tile_tokens == 128
                          ? (c.aligned ? tile_bf16_kernel<128, true> : tile_bf16_kernel<128, false>)
                          : (c.aligned ? tile_bf16_kernel<64, true> : tile_bf16_kernel<64, false>);
  launch(kernel, launch_config(c, stream), p, static_cast<int>(c.slice),
         static_cast<int>(c.token_blocks));
}

}  // namespace ernie::cuda
