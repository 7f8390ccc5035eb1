// Rotary position embedding: of the text decoder, for text alone and beside images and videos, and
// of the vision tower.
//
//   rope_table      freq_i = theta^(-2i / D), i = 0 .. D/2 - 1,  angle_i = position * freq_i
//   mrope_table     the same, with one of three positions t, h, w: of the first D/2 -
//   freq_allocation
//                   pairs the even ones turn with h, the odd ones with w; the others with t
//   rope_2d_table   freq_j = theta^(-4j / D), j = 0 .. D/4 - 1; angle_j = y * freq_j and
//                   angle_(D/4 + j) = x * freq_j
//   rope            (x[2i], x[2i+1]) -> (x[2i] cos - x[2i+1] sin,  x[2i+1] cos + x[2i] sin)
//   rope_2d         (x[i], x[D/2+i]) -> (x[i] cos - x[D/2+i] sin,  x[D/2+i] cos + x[i] sin)
//
// Frequency and angle are rounded to float32 each, cosine and sine too; the rotation is computed in
// float32 and rounded once to the dtype of x. A table is made once per step and serves every layer.
// Where the three positions are equal, mrope_table is rope_table to the bit.
// Source: Su et al. 2021, arXiv:2104.09864; interleaved pairs as in ERNIE-4.5 and GPT-J, halves as
// in its vision tower and GPT-NeoX.
#pragma once

#include "core/tensor.h"
#include "ops/rope_core.h"

namespace ernie {

struct RopeTableArgs {
  TensorView out;  // [num_tokens, head_dim], float32, contiguous: cos, sin of pair 0, pair 1, ...
  TensorView positions;  // [num_tokens], int64, contiguous, each >= 0
  float theta;           // finite, > 0
};

struct MropeTableArgs {
  TensorView out;           // as of rope_table
  TensorView positions;     // [3, num_tokens], int64, contiguous, each >= 0: rows t, h, w
  float theta;              // finite, > 0
  int64_t freq_allocation;  // pairs that turn with t: 0 .. head_dim / 2
};

struct Rope2dTableArgs {
  TensorView out;  // [num_tokens, head_dim], float32, contiguous: all cosines, then all sines;
                   // head_dim a multiple of 4
  TensorView positions;  // [2, num_tokens], int64, contiguous, each >= 0: rows y, x
  float theta;           // finite, > 0
};

// What makes any of the tables.
struct RopeAnglesArgs {
  const char* op;  // to blame
  TensorView out, positions;
  float theta;
  RopeScheme scheme;
};

// rope and rope_2d.
struct RopeArgs {
  TensorView query;  // [num_tokens, num_heads, head_dim], float32 or bfloat16, rotated in place;
                     // last stride 1, head_dim even
  TensorView key;    // [num_tokens, num_kv_heads, head_dim], dtype of query, rotated in place
  TensorView table;  // [num_tokens, head_dim], float32, contiguous: from rope_table or mrope_table
                     // for rope, from rope_2d_table for rope_2d
};

void rope_table(const RopeTableArgs&, const Stream&);
void mrope_table(const MropeTableArgs&, const Stream&);
void rope_2d_table(const Rope2dTableArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);
void rope_2d(const RopeArgs&, const Stream&);

namespace cpu {
void rope_angles(const RopeAnglesArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);
void rope_2d(const RopeArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void rope_angles(const RopeAnglesArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);
void rope_2d(const RopeArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
