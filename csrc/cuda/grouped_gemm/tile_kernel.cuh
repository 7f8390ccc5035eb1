// The kernel for many rows an expert, bfloat16 x.
#pragma once

#include "cuda/common.cuh"
#include "cuda/gemm/pipeline.cuh"
#include "cuda/grouped_gemm/weight.cuh"
#include "cuda/grouped_gemm/work.cuh"

namespace ernie::cuda {

// What a block loads from: its rows of x, as offsets in shared memory (-1: none), and its first
// output.
struct TileSource {
  const GroupedOperands& p;
  const int64_t* x_offsets;
  int64_t rows_of_weight, output0;
  int expert;
};

constexpr int kTileWeightRows = grouped_plan::kTileWeightRows, kTileThreads = 2 * kTileWeightRows;

// Brings step `k` of kRows rows of x and of the block's rows of the weight into one stage.
template <DType kDtype, int kRows, bool kGated, bool kAligned>
__device__ __forceinline__ void load_stage(uint4* stage, const TileSource& from, int k0) {
  using Weight = ExpertWeight<kDtype>;
  constexpr int kXChunks = 4 * Weight::kLoadK / 8;
  const GroupedOperands& p = from.p;
#pragma unroll
  for (int i = 0; i < kRows * kXChunks / kTileThreads; ++i) {
    const int at = threadIdx.x + i * kTileThreads;
    const int row = at / kXChunks, chunk = at % kXChunks, k = k0 + 8 * chunk;
    const int64_t offset = from.x_offsets[row];
    const bf16* source = static_cast<const bf16*>(p.x) + (offset < 0 ? 0 : offset);
    copy_chunk<kAligned>(stage + place_of<kXChunks>(row, chunk), source, k, offset < 0 ? 0 : p.k);
  }
  uint4* weights = stage + kRows * kXChunks;
#pragma unroll
  for (int i = 0; i < kTileWeightRows * 4 / kTileThreads; ++i) {
    const int at = threadIdx.x + i * kTileThreads;
    const int k = k0 + Weight::kLoadK * (at % 4);
    const WeightRow row = weight_row(from.output0, at / 4, kGated, p.n);
    const bool exists = row.output < p.n;
    const char* source =
        weight_data<kDtype>(p, from.expert, from.rows_of_weight, exists ? row.row : 0);
    if constexpr (kAligned) {
      const bool inside = exists && k < p.k;
      cp_async_16(weights + at, source + (inside ? row_bytes<kDtype>(k) : 0), inside ? 16 : 0);
    } else {
      weights[at] = Weight::template load<false>(source, k, exists ? p.k : 0);
    }
  }
}

// Stores the sums of a lane: rows row0 + 8 t and the next of the block's tile, the weight rows
// local0 + 16 f and 8 further.
template <DType kDtype, bool kGated, int kRowTiles, int kPairs>
__device__ __forceinline__ void store_sums(const TileSource& from, const ExpertRows& rows,
                                           const float (&total)[kRowTiles][kPairs][4], int row0,
                                           int local0) {
  constexpr float kUnit = ExpertWeight<kDtype>::kUnit;
  const GroupedOperands& p = from.p;
#pragma unroll
  for (int f = 0; f < kPairs; ++f) {
    const WeightRow low = weight_row(from.output0, local0 + 16 * f, kGated, p.n);
    const WeightRow high = weight_row(from.output0, local0 + 16 * f + 8, kGated, p.n);
    const bool low_exists = low.output < p.n, high_exists = high.output < p.n;
    const auto factor = [&](const WeightRow& at, bool exists) {
      return exists ? factor_of(p, from.expert, from.rows_of_weight, at.row, kUnit) : 1.f;
    };
    const float low_factor = factor(low, low_exists), high_factor = factor(high, high_exists);
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = row0 + 8 * t + i;
        if (row >= rows.count) continue;
        const float first = total[t][f][i] * low_factor, second = total[t][f][2 + i] * high_factor;
        if constexpr (kGated) {
          if (low_exists) store_gated<bf16>(p, rows.begin + row, low.output, first, second);
        } else {
          if (low_exists) store_sum<bf16>(p, rows.begin + row, low.output, first);
          if (high_exists) store_sum<bf16>(p, rows.begin + row, high.output, second);
        }
      }
  }
}

// A block owns up to kRows rows of one expert by 128 rows of its weight, a warp kRows / 2 by 32 of
// them; steps of K come through shared memory, rows of x by their source, the weight's as they lie,
// and each warp widens what it multiplies. The sums of a slice of K end in `total` before the next
// slice begins, which gives the bits of the narrow kernel.
//
// Bound by the tensor cores where 128 rows are full: 64 products for each KiB from L2, and mma.sync
// reaches some 60 % of what wgmma does. A tile of few rows is bound by its weight. Blocks that
// share rows of x run side by side, and those of an expert's next tile find its weight in L2.
template <DType kDtype, int kRows, int kStages, bool kGated, bool kAligned>
__global__ void __launch_bounds__(kTileThreads)
    grouped_tile_kernel(GroupedOperands p, int slice_length, int feature_blocks) {
  using Weight = ExpertWeight<kDtype>;
  constexpr int kRowTiles = kRows / 2 / 8, kPairs = 2;
  constexpr int kOutputs = kGated ? kTileWeightRows / 2 : kTileWeightRows;
  constexpr int kChunks = Weight::kLoadK / 8, kXChunks = 4 * kChunks, kStep = 4 * Weight::kLoadK;
  constexpr int kStageChunks = kRows * kXChunks + 4 * kTileWeightRows;
  ERNIE_DYNAMIC_SHARED(uint4, stages);
  ERNIE_SHARED(int64_t, x_offsets, [kRows]);

  const RowTile tile = find_row_tile<kTileThreads>(p, kRows, blockIdx.x / feature_blocks);
  if (tile.expert < 0) return;
  if (const int row = static_cast<int>(threadIdx.x); row < kRows)
    x_offsets[row] = row < tile.rows.count ? x_offset(p, tile.rows.begin + row) : -1;
  __syncthreads();
  const int64_t output0 = int64_t{blockIdx.x % feature_blocks} * kOutputs;
  const TileSource from = {p, x_offsets, kGated ? int64_t{2} * p.n : p.n, output0, tile.expert};
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int quad = lane / 4, column = lane % 4;
  const int warp_row = warp % 2 * (kRows / 2), warp_local = warp / 2 * 32;

  const int steps = (p.k + kStep - 1) / kStep;
  SlicedSums<kRowTiles, kPairs> sums(slice_length / kStep);
  for_each_stage<kStages, kStageChunks>(
      stages, steps,
      [&](uint4* stage, int step) {
        load_stage<kDtype, kRows, kGated, kAligned>(stage, from, step * kStep);
      },
      [&](const uint4* x, int step) {
        const uint4* weights = x + kRows * kXChunks;
        uint4 bytes[2 * kPairs];
#pragma unroll
        for (int f = 0; f < 2 * kPairs; ++f)
          bytes[f] = weights[(warp_local + 8 * f + quad) * 4 + column];
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          uint4 wide[2 * kPairs];
#pragma unroll
          for (int f = 0; f < 2 * kPairs; ++f) wide[f] = Weight::chunk(bytes[f], c);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            const uint4 v = x[place_of<kXChunks>(warp_row + 8 * t + quad, kChunks * column + c)];
#pragma unroll
            for (int f = 0; f < kPairs; ++f)
              multiply_chunk(sums.acc[t][f], wide[2 * f], wide[2 * f + 1], v);
          }
        }
        sums.end_step(step + 1 == steps);
      });
  store_sums<kDtype, kGated>(from, tile.rows, sums.total, warp_row + 2 * column, warp_local + quad);
}

// ------------------------------------------------------------------------------------- launcher

template <DType kDtype, bool kGated>
auto grouped_tile_kernel_of(const GemmConfig& c) {
  constexpr int kStages = grouped_plan::tile_stages(kDtype, 64);
  if (!c.aligned) return grouped_tile_kernel<kDtype, 64, kStages, kGated, false>;
  if (c.tile_tokens == 64) return grouped_tile_kernel<kDtype, 64, kStages, kGated, true>;
  return grouped_tile_kernel<kDtype, 128, grouped_plan::tile_stages(kDtype, 128), kGated, true>;
}

template <DType kDtype>
void launch_grouped_tile(const GroupedOperands& p, bool gated, const GemmConfig& c,
                         cudaStream_t stream) {
  launch(gated ? grouped_tile_kernel_of<kDtype, true>(c) : grouped_tile_kernel_of<kDtype, false>(c),
         {.grid = static_cast<unsigned>(c.blocks()),
          .block = static_cast<unsigned>(c.threads),
          .smem = static_cast<size_t>(c.shared_bytes),
          .stream = stream},
         p, static_cast<int>(c.slice), static_cast<int>(c.feature_blocks));
}

}  // namespace ernie::cuda
