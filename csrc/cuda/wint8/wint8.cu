// The launcher of wint8_linear on CUDA: describes the call to plan_wint8 and does as the plan says.
#include "core/batch_invariant.h"
#include "cuda/common.cuh"
#include "cuda/gemm/inputs.h"
#include "cuda/wint8/kernels.h"
#include "ops/activation.h"
#include "ops/wint8.h"

namespace ernie::cuda {
namespace {

GemmProblem problem_of(const Wint8LinearArgs& a, const Gpu& gpu) {
  const int64_t k = a.x.size(1);
  return {.num_tokens = a.x.size(0),
          .out_features = a.out.size(1),
          .in_features = k,
          .x = a.x.dtype,
          .weight = a.weight.dtype,
          .out = a.out.dtype,
          .inputs_aligned = k % 16 == 0 && rows_aligned(a.x) && aligned(a.weight),
          .batch_invariant = batch_invariant(),
          .capability = gpu.capability,
          .sm_count = gpu.sm_count};
}

}  // namespace

void wint8_linear(const Wint8LinearArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const GemmConfig config = plan_wint8(problem_of(a, gpu_of(stream.device.index)));
  const GemmOperands p{.x = a.x.data,
                       .weight = a.weight.data,
                       .scale = a.scale.ptr<float>(),
                       .bias = a.bias ? a.bias->data : nullptr,
                       .out = a.out.data,
                       .m = static_cast<int>(a.x.size(0)),
                       .n = static_cast<int>(a.out.size(1)),
                       .k = static_cast<int>(a.x.size(1)),
                       .x_stride = a.x.step(0),
                       .out_stride = a.out.step(0),
                       .bias_is_f32 = a.bias && a.bias->dtype == DType::kF32,
                       .out_is_f32 = a.out.dtype == DType::kF32};
  switch (config.kernel) {
    case GemmKernel::kNarrowBf16:
      return launch_wint8_narrow_bf16(p, config, stream_of(stream));
    case GemmKernel::kTileBf16:
      return launch_wint8_tile_bf16(p, config, stream_of(stream));
    case GemmKernel::kNarrowF32:
      return launch_narrow_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kTileF32:
      return launch_tile_f32(p, a.weight.dtype, config, stream_of(stream));
    case GemmKernel::kSm80:  // CUTLASS: in no plan of this op
    case GemmKernel::kSm90:
      return;
  }
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream& stream) {
  cuda::wint8_linear({.out = *a.gate_up,
                      .x = a.x,
                      .weight = a.weight,
                      .scale = a.scale,
                      .bias = a.bias,
                      .int8_activations = false},
                     stream);
  cuda::silu_and_mul({.out = a.out, .x = *a.gate_up}, stream);
}

}  // namespace ernie::cuda
