// Leaf functions of the attention family. Raw pointers, no threads. Defined in attention.isa.cpp;
// the products are those of gemm.isa.h, whose panels these functions fill.
#pragma once

#include "core/bf16.h"
#include "core/isa.h"

namespace ernie::cpu {

// A key tile as weights of q * k^T: out[d, j] = keys[j, d] for one panel of 16 keys, zero for
// j >= count. Rows of keys, and of values below, are `stride` elements apart.
ERNIE_DECLARE_ISA(void pack_keys(const float* keys, int64_t stride, int64_t count, int64_t head_dim,
                                 float* out))
ERNIE_DECLARE_ISA(void pack_keys(const bf16* keys, int64_t stride, int64_t count, int64_t head_dim,
                                 float* out))

// The same for products of bfloat16 pairs: out[d / 2, j, d % 2] = keys[j, d], bits unchanged.
ERNIE_DECLARE_ISA(void pack_keys(const bf16* keys, int64_t stride, int64_t count, int64_t head_dim,
                                 bf16* out))

// Up to 16 values as rows of the weights of p * v, which start at out:
// out[panel, j, i] = values[j, 16 panel + i], zero beyond head_dim; panels are `panel_stride`
// apart. False if a value is infinite or NaN.
ERNIE_DECLARE_ISA(bool pack_values(const float* values, int64_t stride, int64_t count,
                                   int64_t head_dim, float* out, int64_t panel_stride))
ERNIE_DECLARE_ISA(bool pack_values(const bf16* values, int64_t stride, int64_t count,
                                   int64_t head_dim, float* out, int64_t panel_stride))

// The same for products of bfloat16 pairs: out[panel, j / 2, i, j % 2] = values[j, 16 panel + i],
// zero for j == count.
ERNIE_DECLARE_ISA(bool pack_values(const bf16* values, int64_t stride, int64_t count,
                                   int64_t head_dim, bf16* out, int64_t panel_stride))

// The scores of a tile's rows against the same kTileKeys keys become probabilities relative to each
// row's running maximum, in place: p[r, j] = 2^(scale * log2(e) * s[r, j] - new maximum) for
// j < visible[r], zero for the other keys. sum[r] and acc[r] are rescaled to the new maximum, and
// the probabilities added to sum[r].
constexpr int64_t kTileKeys = 64;
struct SoftmaxTile {
  float* scores;  // [rows, kTileKeys]
  int64_t rows;
  const int32_t* visible;  // [rows], 1 to kTileKeys
  float scale;
  float* maximum;  // [rows], of scale * log2(e) * s
  float* sum;      // [rows]
  float* acc;      // [rows, width]
  int64_t width;
};
ERNIE_DECLARE_ISA(void softmax_f32(const SoftmaxTile&))
// Leaves each row of probabilities as bfloat16, rounded after the sum, in the first half of its row
// of scores.
ERNIE_DECLARE_ISA(void softmax_bf16(const SoftmaxTile&))

// Adds one split's result (maximum, sum, acc) to the total's.
ERNIE_DECLARE_ISA(void merge_row(float* total_maximum, float* total_sum, float* total,
                                 float maximum, float sum, const float* acc, int64_t n))

// out[i] = round(acc[i] / sum), and +0 where acc[i] is -0.
ERNIE_DECLARE_ISA(void divide_row(const float* acc, float sum, float* out, int64_t n))
ERNIE_DECLARE_ISA(void divide_row(const float* acc, float sum, bf16* out, int64_t n))

}  // namespace ernie::cpu
