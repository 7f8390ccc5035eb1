#include "cuda/common.cuh"
#include "cuda/gemm/fragment.cuh"
#include "cuda/gemm/kernels.h"
#include "cuda/gemm/output.cuh"
#include "cuda/gemm/work.cuh"

namespace ernie::cuda {
namespace {

// linear for few tokens. A block owns 16 * kTokenTiles tokens by 8 * kFeatureTiles features; warp s
// sums slice s of K, and the block adds the eight slices in order. Fragments come straight from
// global memory, so nothing waits on a barrier while it streams.
//
// Bound by memory: reads every weight byte once, 16 bytes a lane and four loads of
// a lane in flight, and x once a block, from L1 and L2. Tensor cores idle at most of their rate,
// whatever num_tokens: rows beyond it are zero.
template <int kTokenTiles, int kFeatureTiles, bool kAligned>
__global__ void __launch_bounds__(32 * kGemmSlices, kTokenTiles == 1 ? 3 : 2)
    narrow_bf16_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokens = 16 * kTokenTiles, kFeatures = 8 * kFeatureTiles;
  constexpr int kUnroll = kAligned ? 4 / kTokenTiles : 1;
  ERNIE_SHARED(float, partial, [kGemmSlices * kTokens * kFeatures]);

  const auto [token0, feature0] = BlockPlace<kTokens, kFeatures>(token_blocks);
  const auto [quad, chunk, slice, begin, end] = SlicePlace(p.k, slice_length);
  // An `end` of 0 makes every chunk of a row that does not exist zero.
  const bf16* weight[kFeatureTiles];
  int weight_end[kFeatureTiles];
#pragma unroll
  for (int f = 0; f < kFeatureTiles; ++f) {
    const int feature = feature0 + 8 * f + quad;
    weight[f] = static_cast<const bf16*>(p.weight) + int64_t{feature} * p.k;
    weight_end[f] = feature < p.n ? end : 0;
  }
  const int token = token0 + quad;
  const bf16* x = static_cast<const bf16*>(p.x) + token * p.x_stride;

  float acc[kTokenTiles][kFeatureTiles][4] = {};
  for (int k = begin + 8 * chunk; k - 8 * chunk < end; k += kUnroll * kStepK) {
    uint4 w[kUnroll][kFeatureTiles];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f)
        w[u][f] = load_chunk<kAligned, true>(weight[f], k + u * kStepK, weight_end[f]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        const int low = token + 16 * t, high = low + 8;
        const uint4 x_low =
            load_chunk<kAligned>(x + 16 * t * p.x_stride, k + u * kStepK, low < p.m ? end : 0);
        const uint4 x_high = load_chunk<kAligned>(x + (16 * t + 8) * p.x_stride, k + u * kStepK,
                                                  high < p.m ? end : 0);
#pragma unroll
        for (int f = 0; f < kFeatureTiles; ++f) multiply_step(acc[t][f], x_low, x_high, w[u][f]);
      }
  }

  float* mine = partial + slice * kTokens * kFeatures;
#pragma unroll
  for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(16 * t + quad + 8 * (i / 2)) * kFeatures + 8 * f + 2 * chunk + i % 2] = acc[t][f][i];
  __syncthreads();

  for (int i = threadIdx.x; i < kTokens * kFeatures; i += 32 * kGemmSlices) {
    const int to_token = token0 + i / kFeatures, to_feature = feature0 + i % kFeatures;
    if (to_token >= p.m || to_feature >= p.n) continue;
    const float sum = sum_of_slices<kTokens * kFeatures>(partial, i);
    store_activated<bf16>(p, to_token, to_feature, sum);
  }
}

}  // namespace

// ------------------------------------------------------------------------------------- launcher

void launch_narrow_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel = [&] {
    switch (c.tile_tokens) {
      case 16:
        return c.aligned ? narrow_bf16_kernel<1, 1, true> : narrow_bf16_kernel<1, 1, false>;
      case 32:
        return c.aligned ? narrow_bf16_kernel<2, 2, true> : narrow_bf16_kernel<2, 2, false>;
      default:
        return c.aligned ? narrow_bf16_kernel<4, 2, true> : narrow_bf16_kernel<4, 2, false>;
    }
  }();
  launch(kernel, launch_config(c, stream), p, static_cast<int>(c.slice),
         static_cast<int>(c.token_blocks));
}

}  // namespace ernie::cuda
