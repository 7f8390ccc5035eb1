// What CUTLASS's kernels want before they start: the experts' problems, and rows in one piece.
#include "cuda/common.cuh"
#include "cuda/grouped_gemm/cutlass.h"
#include "cuda/grouped_gemm/kernels.h"
#include "cuda/grouped_gemm/work.cuh"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;

// Blocks x walk the rows, y their 16 bytes. Memory-bound: reads and writes each row once.
__global__ void __launch_bounds__(kThreads)
    grouped_gather_kernel(uint4* out, const GroupedOperands p) {
  constexpr int kElements = 8;
  const int64_t width = p.k / kElements, step = int64_t{gridDim.y} * kThreads;
  for (int64_t row = blockIdx.x; row < p.num_rows; row += gridDim.x) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(p.x) +
                                                       x_offset(p, static_cast<int>(row)));
    for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < width; i += step)
      out[row * width + i] = from[i];
  }
}

// A thread an expert.
__global__ void __launch_bounds__(kThreads)
    grouped_arrays_kernel(const GroupedArrays a, const GroupedOperands p) {
  const int expert = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (expert >= a.num_experts) return;
  const ExpertRows rows =
      expert_rows(p.expert_offsets[expert], p.expert_offsets[expert + 1], p.num_rows);
  a.sizes[expert][0] = rows.count;
  a.sizes[expert][1] = p.n;
  a.sizes[expert][2] = p.k;
  a.x[expert] = static_cast<const bf16*>(p.x) + rows.begin * p.x_stride;
  a.weight[expert] = static_cast<const bf16*>(p.weight) + int64_t{expert} * p.n * p.k;
  a.out[expert] = static_cast<bf16*>(p.out) + rows.begin * p.out_stride;
  a.x_stride[expert] = p.x_stride;
  a.weight_stride[expert] = p.k;
  a.out_stride[expert] = p.out_stride;
}

// ------------------------------------------------------------------------------------- launcher

template <class T>
T* at(void* workspace, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(workspace) + offset);
}

}  // namespace

void* launch_grouped_cutlass(GroupedOperands p, const GroupedProblem& problem, const GemmConfig& c,
                             void* workspace, cudaStream_t stream) {
  const GroupedWorkspace w = grouped_workspace(problem);
  constexpr uintptr_t kAlignment = kGroupedWorkspaceAlignment;
  workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1) /
                                      kAlignment * kAlignment);
  if (problem.gathers) {
    uint4* rows = at<uint4>(workspace, w.gathered);
    launch(
        grouped_gather_kernel,
        {.grid = grid_of_items(p.num_rows, p.k / 8, kThreads), .block = kThreads, .stream = stream},
        rows, p);
    p.x = rows, p.x_stride = p.k, p.source_rows = nullptr;
  }
  if (problem.gated) {
    p.n = static_cast<int>(problem.rows_of_weight());
    p.out = at<void>(workspace, w.gate_up), p.out_stride = p.n;
  }
  const GroupedArrays arrays = {.sizes = at<int32_t[3]>(workspace, w.sizes),
                                .x = at<const void*>(workspace, w.x),
                                .weight = at<const void*>(workspace, w.weight),
                                .out = at<void*>(workspace, w.out),
                                .x_stride = at<int64_t>(workspace, w.x_stride),
                                .weight_stride = at<int64_t>(workspace, w.weight_stride),
                                .out_stride = at<int64_t>(workspace, w.out_stride),
                                .num_experts = p.num_experts};
  launch(grouped_arrays_kernel,
         {.grid = static_cast<unsigned>(ceil_div(p.num_experts, kThreads)),
          .block = kThreads,
          .stream = stream},
         arrays, p);
  const int sm_count = problem.product.sm_count;
  if (c.kernel == GemmKernel::kSm80) launch_grouped_sm80_128x128(arrays, sm_count, stream);
  if constexpr (kHasGroupedSm90) {
    if (c.kernel == GemmKernel::kSm90)
      launch_grouped_sm90_128x128(arrays, sm_count, at<void>(workspace, w.scratch), stream);
  }
  return p.out;
}

}  // namespace ernie::cuda
