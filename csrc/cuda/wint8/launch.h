// Describes a call of wint8_linear or wint4_linear to plan_wint and does as the plan says.
#pragma once

#include "core/batch_invariant.h"
#include "cuda/common.cuh"
#include "cuda/gemm/inputs.h"
#include "cuda/gemm/kernels.h"
#include "cuda/wint8/config.h"

namespace ernie::cuda {

template <class Args>
GemmProblem wint_problem_of(const Args& a, const Gpu& gpu) {
  const int64_t k = a.x.size(1), load_k = wint_plan::step_of(a.weight.dtype) / 4;
  return {.num_tokens = a.x.size(0),
          .out_features = a.out.size(1),
          .in_features = k,
          .x = a.x.dtype,
          .weight = a.weight.dtype,
          .out = a.out.dtype,
          .inputs_aligned = k % load_k == 0 && rows_aligned(a.x) && aligned(a.weight),
          .batch_invariant = batch_invariant(),
          .capability = gpu.capability,
          .sm_count = gpu.sm_count};
}

// Kernels for bfloat16 x.
struct WintKernels {
  void (*narrow)(const GemmOperands&, const GemmConfig&, cudaStream_t);
  void (*tile)(const GemmOperands&, const GemmConfig&, cudaStream_t);
};

template <class Args>
void launch_wint(const Args& a, const WintKernels& kernels, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const GemmConfig config = plan_wint(wint_problem_of(a, gpu_of(stream.device.index)));
  const GemmOperands p = operands_of(a);
  switch (config.kernel) {
    case GemmKernel::kNarrowBf16:
      return kernels.narrow(p, config, stream_of(stream));
    case GemmKernel::kTileBf16:
      return kernels.tile(p, config, stream_of(stream));
    case GemmKernel::kNarrowF32:
      return launch_narrow_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kTileF32:
      return launch_tile_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kSm80:  // CUTLASS: in no plan of these ops
    case GemmKernel::kSm90:
      return;
  }
}

}  // namespace ernie::cuda
