// The gate of a SwiGLU MLP.
//
//   out[t, i] = silu(x[t, i]) * x[t, I + i],   silu(v) = v / (1 + exp(-v)),   I = intermediate_size
//
// Computed in float32 and rounded once to the dtype of x.
// Source: Shazeer 2020, arXiv:2002.05202; gate columns first, then up, as in ERNIE-4.5.
#pragma once

#include "core/tensor.h"

namespace ernie {

struct SiluAndMulArgs {
  TensorView out;  // [num_tokens, intermediate_size], dtype of x, last stride 1
  TensorView x;    // [num_tokens, 2 * intermediate_size], float32 or bfloat16, last stride 1
};

void silu_and_mul(const SiluAndMulArgs&, const Stream&);

namespace cpu {
void silu_and_mul(const SiluAndMulArgs&, const Stream&);
}
namespace cuda {
void silu_and_mul(const SiluAndMulArgs&, const Stream&);
}

}  // namespace ernie
