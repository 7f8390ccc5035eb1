// linear on Ampere and newer by CUTLASS's multistage kernel: cp.async brings tiles of x and the
// weight four stages deep, four warps multiply 64 x 64 each with mma.m16n8k16. Bound by the tensor
// cores once tiles fill the GPU. Needs no workspace.
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal.h>

#include "cuda/gemm/cutlass_status.h"
#include "cuda/gemm/kernels.h"

namespace ernie::cuda {

constexpr int kSm80Alignment = 8;  // elements: 16 bytes

// Output is one of CUTLASS's thread-level epilogues, from sums and a source: the bias, a matrix
// whose rows are all the same, with a stride of 0.
template <class Output>
void launch_sm80_128x128(const GemmOperands& p, const typename Output::Params& output,
                         cudaStream_t stream) {
  using Element = cutlass::bfloat16_t;
  using Gemm = cutlass::gemm::device::GemmUniversal<
      Element, cutlass::layout::RowMajor, Element, cutlass::layout::ColumnMajor, Element,
      cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
      cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
      cutlass::gemm::GemmShape<16, 8, 16>, Output,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, 4, kSm80Alignment,
      kSm80Alignment>;

  const typename Gemm::Arguments args(cutlass::gemm::GemmUniversalMode::kGemm, {p.m, p.n, p.k},
                                      /*split_k_slices=*/1, output, p.x, p.weight, p.bias, p.out,
                                      /*batch strides=*/0, 0, 0, 0, p.x_stride, int64_t{p.k},
                                      /*bias=*/int64_t{0}, p.out_stride);
  Gemm gemm;
  check_cutlass(Gemm::can_implement(args));
  if (Gemm::get_workspace_size(args) != 0) check_cutlass(cutlass::Status::kErrorWorkspaceNull);
  check_cutlass(gemm.initialize(args, nullptr, stream));
  check_cutlass(gemm.run(stream));
}

}  // namespace ernie::cuda
