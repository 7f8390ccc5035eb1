// The launchers of the experts' products on CUDA: describe the call to plan_grouped and do as the
// plan says.
#include "core/batch_invariant.h"
#include "cuda/common.cuh"
#include "cuda/gemm/inputs.h"
#include "cuda/grouped_gemm/cutlass.h"
#include "cuda/grouped_gemm/kernels.h"
#include "ops/grouped_gemm.h"

namespace ernie::cuda {
namespace {

// What of a problem is known without its tensors: they are taken for aligned where their sizes are.
GroupedProblem problem_of(const GroupedLinearSize& size, const Gpu& gpu) {
  const int64_t load_k = grouped_plan::step_of(size.x, size.weight) / 4;
  const int capability = gpu.capability == 90 && !kHasGroupedSm90 ? 80 : gpu.capability;
  return {.product = {.num_tokens = size.num_rows,
                      .out_features = size.columns,
                      .in_features = size.in_features,
                      .x = size.x,
                      .weight = size.weight,
                      .out = size.x,
                      .inputs_aligned = size.in_features % load_k == 0,
                      .outputs_aligned = size.columns % (size.gated ? 4 : 8) == 0,
                      .batch_invariant = batch_invariant(),
                      .capability = capability,
                      .sm_count = gpu.sm_count},
          .num_experts = size.num_experts,
          .gated = size.gated,
          .gathers = size.gathers};
}

template <class Args>
GroupedProblem problem_of(const Args& a, bool gated, const Gpu& gpu) {
  const TensorView& weight = a.weight.weight;
  GroupedProblem g = problem_of({.num_rows = a.out.size(0),
                                 .num_experts = weight.size(0),
                                 .columns = a.out.size(1),
                                 .in_features = a.x.size(1),
                                 .x = a.x.dtype,
                                 .weight = weight.dtype,
                                 .gated = gated,
                                 .gathers = a.source_rows.has_value()},
                                gpu);
  g.product.inputs_aligned &= rows_aligned(a.x) && aligned(weight);
  // What is gated leaves CUTLASS for the workspace.
  g.product.outputs_aligned &= gated || rows_aligned(a.out);
  if (a.workspace && aligned(*a.workspace)) g.workspace_bytes = a.workspace->size(0);
  return g;
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
  switch (config.kernel) {
    case GemmKernel::kSm80:
    case GemmKernel::kSm90:
      return launch_grouped_cutlass(p, problem, config, a.workspace->data, stream_of(stream));
    case GemmKernel::kNarrowF32:
      return launch_grouped_narrow_f32(p, weight, gated, config, stream_of(stream));
    default:
      return launch_bf16(p, weight, gated, config, stream_of(stream));
  }
}

}  // namespace

int64_t grouped_linear_workspace_size(Device device, const GroupedLinearSize& size) {
  GroupedProblem problem = problem_of(size, gpu_of(device.index));
  problem.product.batch_invariant = false;  // may be unset again when the product is called
  return grouped_workspace_bytes(problem);
}

void grouped_linear(const GroupedLinearArgs& a, const Stream& stream) {
  launch_product(a, false, stream);
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream& stream) {
  launch_product(a, true, stream);
}

void grouped_linear_of_banks(std::span<const GroupedLinearArgs> banks, const Stream& stream) {
  for (const GroupedLinearArgs& a : banks) launch_product(a, false, stream);
}

void grouped_linear_silu_and_mul_of_banks(std::span<const GroupedLinearSiluAndMulArgs> banks,
                                          const Stream& stream) {
  for (const GroupedLinearSiluAndMulArgs& a : banks) launch_product(a, true, stream);
}

}  // namespace ernie::cuda
