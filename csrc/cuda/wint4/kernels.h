// The kernels of this folder, each behind a function that launches it as a plan says. The weight of
// the operands has 4 bits and a scale. Kernels for float32 x: gemm/kernels.h.
#pragma once

#include "cuda/gemm/kernels.h"

namespace ernie::cuda {

void launch_wint4_narrow_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);
void launch_wint4_tile_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);

}  // namespace ernie::cuda
