// The kernels of this folder, each behind a function that launches it as a plan says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"
#include "cuda/grouped_gemm/config.h"

namespace ernie::cuda {

// What every kernel gets, by value. k is in_features; n the columns of out, which, gated, is half
// of the rows of an expert's weight. The weights of the experts follow each other without a gap.
struct GroupedOperands {
  const void* x;
  const void* weight;
  const float* scale;  // [num_experts, rows of a weight]; null for float weights
  void* out;
  const int64_t* expert_offsets;
  const int32_t* source_rows;  // null: row i is x[i]
  int num_rows, num_experts;
  int n, k;
  int64_t num_source_rows;  // of x
  int64_t x_stride, out_stride;
};

// bfloat16 x; a file each of the weight's dtype.
void launch_grouped_narrow_bf16(const GroupedOperands&, bool gated, const GemmConfig&,
                                cudaStream_t);
void launch_grouped_narrow_wint8(const GroupedOperands&, bool gated, const GemmConfig&,
                                 cudaStream_t);
void launch_grouped_narrow_wint4(const GroupedOperands&, bool gated, const GemmConfig&,
                                 cudaStream_t);
void launch_grouped_tile_bf16(const GroupedOperands&, bool gated, const GemmConfig&, cudaStream_t);
void launch_grouped_tile_wint8(const GroupedOperands&, bool gated, const GemmConfig&, cudaStream_t);
void launch_grouped_tile_wint4(const GroupedOperands&, bool gated, const GemmConfig&, cudaStream_t);
// Float32 x, a weight of any dtype.
void launch_grouped_narrow_f32(const GroupedOperands&, DType weight, bool gated, const GemmConfig&,
                               cudaStream_t);

// CUTLASS, with a workspace of grouped_workspace(problem).
void launch_grouped_cutlass(const GroupedOperands&, const GroupedProblem&, const GemmConfig&,
                            void* workspace, cudaStream_t);

}  // namespace ernie::cuda
