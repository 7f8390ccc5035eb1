// The kernel for few rows an expert, bfloat16 x.
#pragma once

#include "cuda/common.cuh"
#include "cuda/gemm/work.cuh"
#include "cuda/grouped_gemm/weight.cuh"
#include "cuda/grouped_gemm/work.cuh"

namespace ernie::cuda {

// A block owns up to 8 * kRowTiles rows of one expert by 16 * kPairs rows of its weight; warp s
// sums slice s of K, and the block adds the eight slices in order. Fragments come straight from
// global memory, rows of x by their source, so nothing waits on a barrier while it streams.
//
// Bound by memory: reads each byte of a weight once for all rows of a tile, 16 bytes a lane and
// kSteps steps ahead of the products, and x once a block, from L1 and L2. Where x is small it is
// loaded ahead too. Blocks beyond the tiles there are end after the search.
template <DType kDtype, int kRowTiles, int kPairs, bool kGated, bool kAligned>
__global__ void __launch_bounds__(32 * kGemmSlices, 2)
    grouped_narrow_kernel(GroupedOperands p, int slice_length, int feature_blocks) {
  using Weight = ExpertWeight<kDtype>;
  constexpr int kRows = 8 * kRowTiles, kWeightRows = 16 * kPairs;
  constexpr int kOutputs = kGated ? kWeightRows / 2 : kWeightRows;
  constexpr int kPitch = kWeightRows + 4;  // spreads a warp's sums over all banks
  constexpr int kChunks = Weight::kLoadK / 8, kStep = 4 * Weight::kLoadK;
  constexpr bool kXAhead = kRowTiles == 1;
  // As many as the registers of two blocks a multiprocessor hold.
  constexpr int kSteps = !kAligned ? 1 : kDtype == DType::kBF16 && kPairs == 1 ? 4 : 2;
  constexpr int kThreads = 32 * kGemmSlices;
  ERNIE_SHARED(float, partial, [kGemmSlices * kRows * kPitch]);

  const int64_t rows_of_weight = kGated ? int64_t{2} * p.n : p.n;
  const RowTile tile = find_row_tile<kThreads>(p, kRows, blockIdx.x / feature_blocks);
  if (tile.expert < 0) return;
  const int64_t output0 = int64_t{blockIdx.x % feature_blocks} * kOutputs;
  const auto [quad, column, slice, begin, end] = SlicePlace(p.k, slice_length);
  // An `end` of 0 makes every chunk of a row that does not exist zero.
  const char* weight[2 * kPairs];
  int weight_end[2 * kPairs];
#pragma unroll
  for (int f = 0; f < 2 * kPairs; ++f) {
    const WeightRow at = weight_row(output0, 8 * f + quad, kGated, p.n);
    weight_end[f] = at.output < p.n ? end : 0;
    weight[f] = weight_data<kDtype>(p, tile.expert, rows_of_weight, at.output < p.n ? at.row : 0);
  }
  const bf16* x[kRowTiles];
  int x_end[kRowTiles];
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    const bool exists = 8 * t + quad < tile.rows.count;
    x_end[t] = exists ? end : 0;
    x[t] =
        static_cast<const bf16*>(p.x) + (exists ? x_offset(p, tile.rows.begin + 8 * t + quad) : 0);
  }

  // Every output of a thread is in one column.
  static_assert(kThreads % kOutputs == 0);
  const int to_local = static_cast<int>(threadIdx.x) % kOutputs;
  const int local = kGated ? to_local / 8 * 16 + to_local % 8 : to_local;  // of its first sum
  const int64_t to_output = output0 + to_local;
  float factor = 1.f, up_factor = 1.f;
  if (to_output < p.n) {
    factor = factor_of(p, tile.expert, rows_of_weight, to_output, Weight::kUnit);
    if constexpr (kGated)
      up_factor = factor_of(p, tile.expert, rows_of_weight, p.n + to_output, Weight::kUnit);
  }

  float acc[kRowTiles][kPairs][4] = {};
  for (int k0 = begin; k0 < end; k0 += kSteps * kStep) {
    const int first = k0 + Weight::kLoadK * column;
    uint4 bytes[kSteps][2 * kPairs];
    uint4 ahead[kSteps][kXAhead ? kChunks : 1];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = first + s * kStep;
#pragma unroll
      for (int f = 0; f < 2 * kPairs; ++f)
        bytes[s][f] = Weight::template load<kAligned>(weight[f], k, weight_end[f]);
      if constexpr (kXAhead) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c)
          ahead[s][c] = load_chunk<kAligned>(x[0], k + 8 * c, x_end[0]);
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (k0 + s * kStep >= end) break;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        uint4 wide[2 * kPairs];
#pragma unroll
        for (int f = 0; f < 2 * kPairs; ++f) wide[f] = Weight::chunk(bytes[s][f], c);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          const uint4 v = kXAhead ? ahead[s][c]
                                  : load_chunk<kAligned>(x[t], first + s * kStep + 8 * c, x_end[t]);
#pragma unroll
          for (int f = 0; f < kPairs; ++f)
            multiply_chunk(acc[t][f], wide[2 * f], wide[2 * f + 1], v);
        }
      }
    }
  }

  float* mine = partial + slice * kRows * kPitch;
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
    for (int f = 0; f < kPairs; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * t + 2 * column + i % 2) * kPitch + 16 * f + 8 * (i / 2) + quad] = acc[t][f][i];
  __syncthreads();

  if (to_output >= p.n) return;
  const auto sum_of = [&](int row, int at) {
    return sum_of_slices<kRows * kPitch>(partial, row * kPitch + at);
  };
  for (int row = static_cast<int>(threadIdx.x) / kOutputs; row < tile.rows.count;
       row += kThreads / kOutputs) {
    const int to_row = tile.rows.begin + row;
    const float sum = sum_of(row, local) * factor;
    if constexpr (kGated)
      store_gated<bf16>(p, to_row, to_output, sum, sum_of(row, local + 8) * up_factor);
    else
      store_sum<bf16>(p, to_row, to_output, sum);
  }
}

// ------------------------------------------------------------------------------------- launcher

template <DType kDtype, bool kGated>
auto grouped_narrow_kernel_of(const GemmConfig& c) {
  constexpr auto pairs = [](int rows) {
    return grouped_plan::narrow_weight_rows(kDtype, rows) / 16;
  };
  if (!c.aligned) return grouped_narrow_kernel<kDtype, 1, pairs(8), kGated, false>;
  if constexpr (grouped_plan::most_narrow_rows(kDtype) > 16) {
    if (c.tile_tokens == 32) return grouped_narrow_kernel<kDtype, 4, pairs(32), kGated, true>;
  }
  return c.tile_tokens == 8 ? grouped_narrow_kernel<kDtype, 1, pairs(8), kGated, true>
                            : grouped_narrow_kernel<kDtype, 2, pairs(16), kGated, true>;
}

template <DType kDtype>
void launch_grouped_narrow(const GroupedOperands& p, bool gated, const GemmConfig& c,
                           cudaStream_t stream) {
  launch(gated ? grouped_narrow_kernel_of<kDtype, true>(c)
               : grouped_narrow_kernel_of<kDtype, false>(c),
         {.grid = static_cast<unsigned>(c.blocks()),
          .block = static_cast<unsigned>(c.threads),
          .stream = stream},
         p, static_cast<int>(c.slice), static_cast<int>(c.feature_blocks));
}

}  // namespace ernie::cuda
