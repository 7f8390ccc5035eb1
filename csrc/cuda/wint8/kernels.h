// The kernels of this folder, each behind a function that launches it as a plan says. The weight of
// the operands is int8 and has a scale. Kernels for float32 x: gemm/kernels.h.
#pragma once

#include "cuda/gemm/kernels.h"
#include "cuda/wint8/config.h"

namespace ernie::cuda {

void launch_wint8_narrow_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);
void launch_wint8_tile_bf16(const GemmOperands&, const GemmConfig&, cudaStream_t);

}  // namespace ernie::cuda
