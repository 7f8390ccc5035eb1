// bfloat16 tiles in shared memory and what the tensor cores do with them. A tile is rows of
// kHeadDim elements, zero beyond head_dim and beyond the last row, each followed by 16 bytes that
// no product reads: an odd number of 16-byte units per row keeps ldmatrix free of bank conflicts.
#pragma once

#include "core/bf16.h"
#include "cuda/attention/work.cuh"
#include "cuda/ptx.cuh"

namespace ernie::cuda {

constexpr int kUnit = 8;  // elements in 16 bytes

template <int kHeadDim>
constexpr int kTileStride = kHeadDim + kUnit;

struct alignas(16) Bf16Unit {
  uint32_t pair[4];
};

// A warp copies `num_valid` rows, `stride` apart, to a tile of kRows; asynchronous, part of the
// caller's next commit group. Other threads see it after wait_group and a barrier.
template <int kHeadDim, int kRows, class Stride>
__device__ __forceinline__ void load_rows(bf16* tile, const bf16* rows, Stride stride,
                                          int num_valid, int head_dim, bool aligned) {
  const int lane = threadIdx.x % kWarpSize;
  if (aligned) {
    constexpr int kUnits = kHeadDim / kUnit;
    static_assert(kRows * kUnits % kWarpSize == 0, "the warp copies whole rounds");
#pragma unroll
    for (int first = 0; first < kRows * kUnits; first += kWarpSize) {
      const int i = first + lane, row = i / kUnits, col = i % kUnits * kUnit;
      const bool valid = row < num_valid && col < head_dim;
      cp_async_16(tile + row * kTileStride<kHeadDim> + col,
                  valid ? rows + row * stride + col : rows, valid ? 16 : 0);
    }
  } else {
    for (int i = lane; i < kRows * kHeadDim; i += kWarpSize) {
      const int row = i / kHeadDim, col = i % kHeadDim;
      tile[row * kTileStride<kHeadDim> + col] =
          row < num_valid && col < head_dim ? rows[row * stride + col] : bf16{0};
    }
  }
}

// The block copies the query rows of its tile.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void load_query(bf16* tile, const AttentionParams& p, const Work& w) {
  const int step = p.query_aligned ? kUnit : 1;
  const int per_row = kHeadDim / step;
  for (int i = threadIdx.x; i < kRows * per_row; i += kAttentionThreads) {
    const int row = i / per_row, col = i % per_row * step;
    bf16* const to = tile + row * kTileStride<kHeadDim> + col;
    const bool valid = row < w.num_rows && col < p.head_dim;
    const bf16* from = nullptr;
    if (valid) {
      const RowPlace at = row_place(p, w, row);
      from = static_cast<const bf16*>(p.query) + at.token * p.query_token_stride +
             at.head * p.query_head_stride + col;
    }
    if (p.query_aligned) {
      Bf16Unit unit = valid ? *reinterpret_cast<const Bf16Unit*>(from) : Bf16Unit{};
#pragma unroll
      for (uint32_t& pair : unit.pair) pair ^= p.query_sign << 16 | p.query_sign;
      *reinterpret_cast<Bf16Unit*>(to) = unit;
    } else {
      *to = {static_cast<uint16_t>((valid ? from->bits : 0) ^ p.query_sign)};
    }
  }
}

// Query fragments of one warp: 16 kMTiles rows. Kept in registers where they fit beside the
// accumulators, else read again for each key tile.
template <int kHeadDim, int kMTiles, bool kInRegisters>
class QueryFragments {
 public:
  // `tile`: the warp's first row.
  __device__ __forceinline__ explicit QueryFragments(const bf16* tile) : tile_(tile) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
        for (int k = 0; k < kHeadDim / 16; ++k) load(m, k, kept_[m * (kHeadDim / 16) + k]);
      }
    }
  }

  __device__ __forceinline__ void get(int m, int k, uint32_t (&a)[4]) const {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = kept_[m * (kHeadDim / 16) + k][i];
    } else {
      load(m, k, a);
    }
  }

 private:
  __device__ __forceinline__ void load(int m, int k, uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % kWarpSize;
    ldmatrix_x4(a, tile_ + (16 * m + lane % 16) * kTileStride<kHeadDim> + 16 * k + lane / 16 * 8);
  }

  const bf16* tile_;
  uint32_t kept_[kInRegisters ? kMTiles * (kHeadDim / 16) : 1][4];
};

// scores = query keys^T: 16 kMTiles rows by kKeys keys.
template <int kHeadDim, int kKeys, int kMTiles, class Fragments>
__device__ __forceinline__ void multiply_keys(float (&scores)[kMTiles][kKeys / 8][4],
                                              const Fragments& query, const bf16* keys) {
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.f;
    }
  }
  const int lane = threadIdx.x % kWarpSize;
  keys += (lane % 8 + lane / 16 * 8) * kTileStride<kHeadDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    uint32_t a[kMTiles][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) query.get(m, k, a[m]);
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];  // two tiles of 8 keys
      ldmatrix_x4(b, keys + 16 * n * kTileStride<kHeadDim> + 16 * k);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        mma_m16n8k16_bf16(scores[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16_bf16(scores[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// out += probabilities values. The accumulators of the scores are, rounded to bfloat16 and taken in
// pairs, the fragments of the left operand.
template <int kHeadDim, int kKeys, int kMTiles>
__device__ __forceinline__ void multiply_values(float (&out)[kMTiles][kHeadDim / 8][4],
                                                const float (&probs)[kMTiles][kKeys / 8][4],
                                                const bf16* values) {
  const int lane = threadIdx.x % kWarpSize;
  values += lane % 16 * kTileStride<kHeadDim> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    uint32_t a[kMTiles][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&pair)[4] = probs[m][2 * k + i / 2];
        a[m][i] = cvt_rn_bf16x2_f32(pair[i % 2 * 2 + 1], pair[i % 2 * 2]);
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];  // two tiles of 8 columns
      ldmatrix_x4_trans(b, values + 16 * k * kTileStride<kHeadDim> + 16 * n);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        mma_m16n8k16_bf16(out[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16_bf16(out[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

}  // namespace ernie::cuda
