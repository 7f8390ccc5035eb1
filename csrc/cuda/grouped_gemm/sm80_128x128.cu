#include <cutlass/cutlass.h>
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm_grouped.h>
#include <cutlass/gemm/kernel/default_gemm_grouped.h>

#include "cuda/gemm/cutlass_status.h"
#include "cuda/grouped_gemm/cutlass.h"

namespace ernie::cuda {

// The experts' products on Ampere and newer: linear's kernel of gemm/sm80_128x128_bf16.cu under
// CUTLASS's visitor, by which blocks find their tiles in the sizes on the device. Two blocks a
// multiprocessor, the most that its shared memory holds, go through all tiles. Needs no workspace.
void launch_grouped_sm80_128x128(const GroupedArrays& p, int sm_count, cudaStream_t stream) {
  using Element = cutlass::bfloat16_t;
  constexpr int kAlignment = 8;  // elements: 16 bytes
  constexpr int kBlocksPerMultiprocessor = 2;
  using Kernel = cutlass::gemm::kernel::DefaultGemmGrouped<
      Element, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, kAlignment, Element,
      cutlass::layout::ColumnMajor, cutlass::ComplexTransform::kNone, kAlignment, Element,
      cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
      cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
      cutlass::gemm::GemmShape<16, 8, 16>,
      cutlass::epilogue::thread::LinearCombination<Element, kAlignment, float, float>,
      cutlass::gemm::threadblock::GemmBatchedIdentityThreadblockSwizzle, 4,
      cutlass::gemm::kernel::GroupScheduleMode::kDeviceOnly>::GemmKernel;
  using Gemm = cutlass::gemm::device::GemmGrouped<Kernel>;

  // beta is 0: the source, which is out, is never read.
  const auto elements = [](auto** p) { return reinterpret_cast<Element**>(const_cast<void**>(p)); };
  const typename Gemm::Arguments args(
      reinterpret_cast<cutlass::gemm::GemmCoord*>(p.sizes), p.num_experts,
      kBlocksPerMultiprocessor * sm_count, {1.f, 0.f}, elements(p.x), elements(p.weight),
      elements(p.out), elements(p.out), p.x_stride, p.weight_stride, p.out_stride, p.out_stride);
  Gemm gemm;
  check_cutlass(Gemm::can_implement(args));
  check_cutlass(gemm.initialize(args, nullptr, stream));
  check_cutlass(gemm.run(stream));
}

}  // namespace ernie::cuda
