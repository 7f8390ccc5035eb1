// The launchers of the experts' products on CUDA: describe the call to plan_grouped and do as the
// plan says.
#include "cuda/common.cuh"
#include "cuda/gemm/inputs.h"
#include "cuda/grouped_gemm/kernels.h"
#include "ops/grouped_gemm.h"

namespace ernie::cuda {
namespace {

// k that one load of a weight's row wants together, and that rows therefore have a multiple of.
int64_t load_k(DType x, DType weight) { return grouped_plan::step_of(x, weight) / 4; }

template <class Args>
GroupedProblem problem_of(const Args& a, bool gated, const Gpu& gpu) {
  const TensorView& weight = a.weight.weight;
  const int64_t k = a.x.size(1);
  return {.product = {.num_tokens = a.out.size(0),
                      .out_features = a.out.size(1),
                      .in_features = k,
                      .x = a.x.dtype,
                      .weight = weight.dtype,
                      .out = a.out.dtype,
                      .inputs_aligned = k % load_k(a.x.dtype, weight.dtype) == 0 &&
                                        rows_aligned(a.x) && aligned(weight),
                      .capability = gpu.capability,
                      .sm_count = gpu.sm_count},
          .num_experts = weight.size(0),
          .gated = gated};
}

template <class Args>
GroupedOperands operands_of(const Args& a) {
  return {.x = a.x.data,
          .weight = a.weight.weight.data,
          .scale = a.weight.scale ? a.weight.scale->template ptr<float>() : nullptr,
          .out = a.out.data,
          .expert_offsets = a.expert_offsets.template ptr<int64_t>(),
          .source_rows = a.source_rows ? a.source_rows->template ptr<int32_t>() : nullptr,
          .num_rows = static_cast<int>(a.out.size(0)),
          .num_experts = static_cast<int>(a.weight.weight.size(0)),
          .n = static_cast<int>(a.out.size(1)),
          .k = static_cast<int>(a.x.size(1)),
          .num_source_rows = a.x.size(0),
          .x_stride = a.x.step(0),
          .out_stride = a.out.step(0)};
}

void launch_bf16(const GroupedOperands& p, DType weight, bool gated, const GemmConfig& c,
                 cudaStream_t stream) {
  const bool narrow = c.kernel == GemmKernel::kNarrowBf16;
  switch (weight) {
    case DType::kI8:
      return (narrow ? launch_grouped_narrow_wint8 : launch_grouped_tile_wint8)(p, gated, c,
                                                                                stream);
    case DType::kU8:
      return (narrow ? launch_grouped_narrow_wint4 : launch_grouped_tile_wint4)(p, gated, c,
                                                                                stream);
    default:
      return (narrow ? launch_grouped_narrow_bf16 : launch_grouped_tile_bf16)(p, gated, c, stream);
  }
}

template <class Args>
void launch_product(const Args& a, bool gated, const Stream& stream) {
  if (a.out.numel() == 0 || a.x.size(0) == 0) return;  // rows of no x: the contract has none
  const DeviceGuard guard(stream.device);
  const GroupedProblem problem = problem_of(a, gated, gpu_of(stream.device.index));
  const GemmConfig config = plan_grouped(problem);
  const GroupedOperands p = operands_of(a);
  const DType weight = problem.product.weight;
  if (config.kernel == GemmKernel::kNarrowF32)
    launch_grouped_narrow_f32(p, weight, gated, config, stream_of(stream));
  else
    launch_bf16(p, weight, gated, config, stream_of(stream));
}

}  // namespace

void grouped_linear(const GroupedLinearArgs& a, const Stream& stream) {
  launch_product(a, false, stream);
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream& stream) {
  launch_product(a, true, stream);
}

}  // namespace ernie::cuda
