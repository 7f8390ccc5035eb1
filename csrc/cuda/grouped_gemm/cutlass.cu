// What CUTLASS's kernels want before they start: the experts' problems, and rows in one piece.
#include "cuda/common.cuh"
#include "cuda/grouped_gemm/cutlass.h"
#include "cuda/grouped_gemm/kernels.h"
#include "cuda/grouped_gemm/work.cuh"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of all experts of the bank, of which those of other banks may lie before and behind.
__device__ __forceinline__ ExpertRows rows_of_bank(const GroupedOperands& p) {
  return expert_rows(p.expert_offsets[0], p.expert_offsets[p.num_experts], p.num_rows);
}

// Blocks x walk the rows, y their 16 bytes. Memory-bound: reads and writes each row once.
__global__ void __launch_bounds__(kThreads)
    grouped_gather_kernel(uint4* out, const GroupedOperands p) {
  constexpr int kElements = 8;
  const ExpertRows rows = rows_of_bank(p);
  const int64_t width = p.k / kElements, step = int64_t{gridDim.y} * kThreads;
  const int64_t end = int64_t{rows.begin} + rows.count;
  for (int64_t row = rows.begin + int64_t{blockIdx.x}; row < end; row += gridDim.x) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(p.x) +
                                                       x_offset(p, static_cast<int>(row)));
    for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < width; i += step)
      out[row * width + i] = from[i];
  }
}

template <bool kWide>
__device__ __forceinline__ void gate_piece(bf16* out, const bf16* gate, const bf16* up, int left) {
  Vec<bf16> g = load_vec<kWide>(gate, left);
  const Vec<bf16> u = load_vec<kWide>(up, left);
#pragma unroll
  for (int j = 0; j < Vec<bf16>::kSize; ++j) set(g, j, silu(get(g, j)) * get(u, j));
  store_vec<kWide>(out, g, left);
}

// SwiGLU of `sums`: p.n gate sums of a row, then its up sums. Blocks x walk the rows, y the
// columns; a thread owns 16 bytes of out. Memory-bound: reads the sums once, writes out once.
__global__ void __launch_bounds__(kThreads)
    grouped_gate_kernel(const bf16* sums, const GroupedOperands p) {
  constexpr int kSize = Vec<bf16>::kSize;
  const ExpertRows rows = rows_of_bank(p);
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kSize;
  const int64_t step = int64_t{gridDim.y} * kThreads * kSize;
  const int64_t end = int64_t{rows.begin} + rows.count;
  for (int64_t row = rows.begin + int64_t{blockIdx.x}; row < end; row += gridDim.x) {
    for (int64_t i = first; i < p.n; i += step) {
      bf16* out = static_cast<bf16*>(p.out) + row * p.out_stride + i;
      const bf16* gate = sums + row * 2 * p.n + i;
      const int left = left_of(p.n, i);
      if (left >= kSize && aligned16(out, gate, gate + p.n))
        gate_piece<true>(out, gate, gate + p.n, left);
      else
        gate_piece<false>(out, gate, gate + p.n, left);
    }
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

void launch_grouped_cutlass(const GroupedOperands& operands, const GroupedProblem& problem,
                            const GemmConfig& c, void* workspace, cudaStream_t stream) {
  const GroupedWorkspace w = grouped_workspace(problem);
  constexpr uintptr_t kAlignment = kGroupedWorkspaceAlignment;
  workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace) + kAlignment - 1) /
                                      kAlignment * kAlignment);
  GroupedOperands p = operands;  // of the product, between copies
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
  if (problem.gated)
    launch(grouped_gate_kernel,
           {.grid = grid_of_items(p.num_rows, ceil_div(operands.n, Vec<bf16>::kSize), kThreads),
            .block = kThreads,
            .stream = stream},
           static_cast<const bf16*>(p.out), operands);
}

}  // namespace ernie::cuda
