// Rotary position embedding of the text decoder: interleaved pairs over the whole head.
//
//   freq_i = theta^(-2i / D), i = 0 .. D/2 - 1      rounded to float32
//   angle  = position * freq_i                       rounded to float32
//   (x[2i], x[2i+1]) -> (x[2i] cos - x[2i+1] sin,  x[2i+1] cos + x[2i] sin)
//
// Cosine and sine are float32; the rotation is computed in float32 and rounded once to the dtype of
// x. The table is made once per step and serves every layer.
// Source: Su et al. 2021, arXiv:2104.09864; pairing (2i, 2i+1) as in ERNIE-4.5 and GPT-J.
#pragma once

#include "core/tensor.h"

namespace ernie {

struct RopeTableArgs {
  TensorView out;  // [num_tokens, head_dim], float32, contiguous: cos, sin of pair 0, pair 1, ...
  TensorView positions;  // [num_tokens], int64, contiguous, each >= 0
  float theta;           // > 0
};

struct RopeArgs {
  TensorView query;  // [num_tokens, num_heads, head_dim], float32 or bfloat16, rotated in place;
                     // last stride 1, head_dim even
  TensorView key;    // [num_tokens, num_kv_heads, head_dim], dtype of query, rotated in place
  TensorView table;  // [num_tokens, head_dim], float32, contiguous: from rope_table
};

void rope_table(const RopeTableArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);

namespace cpu {
void rope_table(const RopeTableArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void rope_table(const RopeTableArgs&, const Stream&);
void rope(const RopeArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
