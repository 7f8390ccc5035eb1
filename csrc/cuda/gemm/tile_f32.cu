#include "cuda/common.cuh"
#include "cuda/gemm/kernels.h"
#include "cuda/gemm/load_floats.cuh"
#include "cuda/gemm/output.cuh"
#include "cuda/gemm/work.cuh"

namespace ernie::cuda {
namespace {

constexpr int kTile = 64, kTileK = 16, kThreads = 128;
constexpr int kTokens = 8, kFeatures = 4;  // outputs of one thread
// Transposed tiles [k][row]. Four words of padding keep rows 16-byte aligned and spread the stores.
constexpr int kPitch = kTile + 4;

// A thread's part of a tile on its way from global to shared memory: consecutive k of one row.
constexpr int kPiece = kTileK / 2;

__device__ __forceinline__ void store_piece(float* tile, int row, int k,
                                            const float (&piece)[kPiece]) {
#pragma unroll
  for (int i = 0; i < kPiece; ++i) tile[(k + i) * kPitch + row] = piece[i];
}

template <int kCount>
__device__ __forceinline__ void load_row(float (&to)[kCount], const float* from) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
  }
}

// linear for many tokens with float32 x. A block owns 64 tokens by 64 features, a thread 8 by 4 of
// them; the next 16 k travel in registers while the present ones are multiplied out of one of two
// shared tiles. One chain of FMA for each output, k ascending. Bound by the FMA units, with a fifth
// of the issue slots spent on shared memory.
template <class W, bool kAligned>
__global__ void __launch_bounds__(kThreads) tile_f32_kernel(GemmOperands p, int token_blocks) {
  ERNIE_SHARED(float, tiles, [4 * kTileK * kPitch]);
  static_assert(kTile * kTile <= 4 * kTileK * kPitch, "room for a tile of outputs");
  float *x_tiles = tiles, *weight_tiles = tiles + 2 * kTileK * kPitch;

  const auto [token0, feature0] = BlockPlace<kTile, kTile>(token_blocks);
  const int row = threadIdx.x % kTile, part = threadIdx.x / kTile * kPiece;
  const int my_token = threadIdx.x / 16 * kTokens, my_feature = threadIdx.x % 16 * kFeatures;

  const int x_end = token0 + row < p.m ? p.k : 0;
  const int weight_end = feature0 + row < p.n ? p.k : 0;
  const float* x = static_cast<const float*>(p.x) + (token0 + row) * p.x_stride;
  const W* weight = row_of_weight<W>(p, feature0 + row);

  float x_piece[kPiece], weight_piece[kPiece];
  load_floats<kAligned>(x_piece, x, part, x_end);
  load_floats<kAligned>(weight_piece, weight, part, weight_end);
  float acc[kTokens][kFeatures] = {};
  for (int k0 = 0, stage = 0; k0 < p.k; k0 += kTileK, stage ^= 1) {
    float* x_tile = x_tiles + stage * kTileK * kPitch;
    float* weight_tile = weight_tiles + stage * kTileK * kPitch;
    store_piece(x_tile, row, part, x_piece);
    store_piece(weight_tile, row, part, weight_piece);
    __syncthreads();  // one is enough: the tile written next was last read before this barrier
    load_floats<kAligned>(x_piece, x, k0 + kTileK + part, x_end);
    load_floats<kAligned>(weight_piece, weight, k0 + kTileK + part, weight_end);

#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      float a[kTokens], b[kFeatures];
      load_row(a, x_tile + k * kPitch + my_token);
      load_row(b, weight_tile + k * kPitch + my_feature);
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) acc[t][f] = fmaf(a[t], b[f], acc[t][f]);
    }
  }

  store_tile<W, kTile>(p, token0, feature0, tiles, [&](const auto& store) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
#pragma unroll
      for (int f = 0; f < kFeatures; ++f) store(my_token + t, my_feature + f, acc[t][f]);
  });
}

// ------------------------------------------------------------------------------------- launcher

template <class W>
void launch_t(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel = c.aligned ? tile_f32_kernel<W, true> : tile_f32_kernel<W, false>;
  launch(kernel, launch_config(c, stream), p, static_cast<int>(c.token_blocks));
}

}  // namespace

void launch_tile_f32(const GemmOperands& p, DType weight, const GemmConfig& c,
                     cudaStream_t stream) {
  with_weight(weight, [&]<class W>() { launch_t<W>(p, c, stream); });
}

}  // namespace ernie::cuda
