// The launcher of linear on CUDA: describes the call to plan_gemm and does as the plan says.
#include "core/batch_invariant.h"
#include "cuda/common.cuh"
#include "cuda/gemm/inputs.h"
#include "cuda/gemm/kernels.h"
#include "ops/activation.h"
#include "ops/gemm.h"

namespace ernie::cuda {
namespace {

// wgmma code runs on 9.0 alone; a build for other GPUs only has none.
int usable_capability(int capability) {
  return capability == 90 && !ERNIE_CUDA_SM90A ? 80 : capability;
}

// tests/simt leaves CUTLASS's units out: the kernels of this folder then take all shapes.
#if defined(ERNIE_SIMT)
constexpr bool kHasCutlass = false;
#else
constexpr bool kHasCutlass = true;
#endif

GemmProblem problem_of(const LinearArgs& a, const Gpu& gpu) {
  const int64_t n = a.out.size(1), k = a.x.size(1);
  return {.num_tokens = a.x.size(0),
          .out_features = n,
          .in_features = k,
          .x = a.x.dtype,
          .weight = a.weight.dtype,
          .out = a.out.dtype,
          .inputs_aligned = k % 8 == 0 && rows_aligned(a.x) && aligned(a.weight),
          .outputs_aligned = n % 8 == 0 && rows_aligned(a.out) && (!a.bias || aligned(*a.bias)),
          .activated = a.activation != Activation::kNone,
          .batch_invariant = batch_invariant(),
          .has_cutlass = kHasCutlass,
          .capability = usable_capability(gpu.capability),
          .sm_count = gpu.sm_count};
}

void launch_sm80([[maybe_unused]] const GemmOperands& p, [[maybe_unused]] int sm_count,
                 [[maybe_unused]] cudaStream_t stream) {
  if constexpr (kHasCutlass)
    (p.activation == Activation::kNone ? launch_sm80_128x128_bf16
                                       : launch_sm80_128x128_bf16_activated)(p, sm_count, stream);
}

void launch_sm90([[maybe_unused]] const GemmOperands& p, [[maybe_unused]] const GemmConfig& c,
                 [[maybe_unused]] int sm_count, [[maybe_unused]] cudaStream_t stream) {
#if ERNIE_CUDA_SM90A
  if (p.out_is_f32) return launch_sm90_64x128_f32(p, sm_count, stream);
  if (p.activation != Activation::kNone)
    return launch_sm90_64x128_bf16_activated(p, sm_count, stream);
  if (c.tile_features == 256) return launch_sm90_128x256_bf16(p, sm_count, stream);
  launch_sm90_64x128_bf16(p, sm_count, stream);
#endif
}

}  // namespace

void linear(const LinearArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const Gpu gpu = gpu_of(stream.device.index);
  const GemmConfig config = plan_gemm(problem_of(a, gpu));
  const GemmOperands p = operands_of(a);
  switch (config.kernel) {
    case GemmKernel::kNarrowBf16:
      return launch_narrow_bf16(p, config, stream_of(stream));
    case GemmKernel::kNarrowF32:
      return launch_narrow_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kTileBf16:
      return launch_tile_bf16(p, config, stream_of(stream));
    case GemmKernel::kTileF32:
      return launch_tile_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kSm80:
      return launch_sm80(p, gpu.sm_count, stream_of(stream));
    case GemmKernel::kSm90:
      return launch_sm90(p, config, gpu.sm_count, stream_of(stream));
  }
}

void linear_silu_and_mul(const LinearSiluAndMulArgs& a, const Stream& stream) {
  cuda::linear({.out = *a.gate_up, .x = a.x, .weight = a.weight, .bias = a.bias}, stream);
  cuda::silu_and_mul({.out = a.out, .x = *a.gate_up}, stream);
}

}  // namespace ernie::cuda
