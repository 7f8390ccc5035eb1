#include "cuda/common.cuh"
#include "cuda/gemm/kernels.h"
#include "cuda/gemm/load_floats.cuh"
#include "cuda/gemm/output.cuh"
#include "cuda/gemm/work.cuh"

namespace ernie::cuda {
namespace {

// Blocks that shall fit: left alone, ptxas takes two of the wide ones, and spills on sm_80.
template <int kFeatureTiles>
constexpr int kNarrowF32Blocks = kFeatureTiles == 4 ? 1 : 0;

// linear for few tokens with float32 x. A block owns 8 tokens by 8 * kFeatureTiles features; warp s
// sums slice s of K, where the four lanes of a quad take alternate 16 bytes of a weight row. An
// output is then 32 chains of FMA, added in a fixed order: over the quad, then over the slices.
//
// Bound by memory for up to 8 tokens (each weight byte is read once), by L1 above.
template <class W, int kFeatureTiles, bool kAligned>
__global__ void __launch_bounds__(32 * kGemmSlices, kNarrowF32Blocks<kFeatureTiles>)
    narrow_f32_kernel(GemmOperands p, int slice_length, int token_blocks) {
  constexpr int kTokens = 8, kFeatures = 8 * kFeatureTiles;
  constexpr int kVec = std::is_same_v<W, Nibbles> ? 8 : 16 / sizeof(W);
  ERNIE_SHARED(float, partial, [kGemmSlices * kTokens * kFeatures]);

  const auto [token0, feature0] = BlockPlace<kTokens, kFeatures>(token_blocks);
  const auto [quad, chunk, slice, begin, end] = SlicePlace(p.k, slice_length);
  const float* x = static_cast<const float*>(p.x) + token0 * p.x_stride;
  const int tokens = p.m - token0 < kTokens ? p.m - token0 : kTokens;

  float acc[kTokens][kFeatureTiles] = {};
#pragma unroll 2
  for (int k = begin + chunk * kVec; k - chunk * kVec < end; k += 4 * kVec) {
    float w[kFeatureTiles][kVec];
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f) {
      const int feature = feature0 + 8 * f + quad;
      load_floats<kAligned>(w[f], row_of_weight<W>(p, feature), k, feature < p.n ? end : 0);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens) break;
      float v[kVec];
      load_floats<kAligned>(v, x + t * p.x_stride, k, end);
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f)
#pragma unroll
        for (int i = 0; i < kVec; ++i) acc[t][f] = fmaf(v[i], w[f][i], acc[t][f]);
    }
  }

  float* mine = partial + slice * kTokens * kFeatures;
#pragma unroll
  for (int t = 0; t < kTokens; ++t)
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f) {
      const float sum = sum_of_quad(acc[t][f]);
      if (chunk == 0) mine[t * kFeatures + 8 * f + quad] = sum;
    }
  __syncthreads();

  for (int i = threadIdx.x; i < kTokens * kFeatures; i += 32 * kGemmSlices) {
    const int to_token = token0 + i / kFeatures, to_feature = feature0 + i % kFeatures;
    if (to_token >= p.m || to_feature >= p.n) continue;
    const float sum = sum_of_slices<kTokens * kFeatures>(partial, i);
    store_activated<W>(p, to_token, to_feature, sum);
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class W>
void launch_t(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel =
      c.tile_features == 8
          ? (c.aligned ? narrow_f32_kernel<W, 1, true> : narrow_f32_kernel<W, 1, false>)
          : (c.aligned ? narrow_f32_kernel<W, 4, true> : narrow_f32_kernel<W, 4, false>);
  launch(kernel, launch_config(c, stream), p, static_cast<int>(c.slice),
         static_cast<int>(c.token_blocks));
}

}  // namespace

void launch_narrow_f32(const GemmOperands& p, DType weight, const GemmConfig& c,
                       cudaStream_t stream) {
  with_weight(weight, [&]<class W>() { launch_t<W>(p, c, stream); });
}

}  // namespace ernie::cuda
