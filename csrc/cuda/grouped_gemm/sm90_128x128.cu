#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/gemm/cutlass_status.h"
#include "cuda/grouped_gemm/config.h"
#include "cuda/grouped_gemm/cutlass.h"

namespace ernie::cuda {

// The experts' products on Hopper by CUTLASS's kernel for arrays of pointers: a block on each
// multiprocessor finds its tiles in the sizes on the device and writes its own TMA descriptors; two
// warpgroups work on a tile each, one in its epilogue while the other multiplies with wgmma.
void launch_grouped_sm90_128x128(const GroupedArrays& p, int sm_count, void* scratch,
                                 cudaStream_t stream) {
  using Element = cutlass::bfloat16_t;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  using Tile = cute::Shape<cute::_128, cute::_128, cute::_64>;
  using Cluster = cute::Shape<cute::_1, cute::_1, cute::_1>;
  using Sizes = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
  constexpr int kAlignment = 8;  // elements: 16 bytes

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor*, kAlignment,
      Element, RowMajor*, kAlignment,
      cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor*, kAlignment, Element,
      ColumnMajor*, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Sizes, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  using XStride = typename Kernel::InternalStrideA;
  using WeightStride = typename Kernel::InternalStrideB;
  using OutStride = typename Kernel::InternalStrideD;
  static_assert(sizeof(XStride) == sizeof(int64_t) && sizeof(WeightStride) == sizeof(int64_t) &&
                sizeof(OutStride) == sizeof(int64_t));
  static_assert(sizeof(typename Sizes::UnderlyingProblemShape) == sizeof(*p.sizes));

  typename Gemm::Arguments args{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {p.num_experts, reinterpret_cast<typename Sizes::UnderlyingProblemShape*>(p.sizes), nullptr},
      {reinterpret_cast<const Element**>(p.x), reinterpret_cast<XStride*>(p.x_stride),
       reinterpret_cast<const Element**>(p.weight),
       reinterpret_cast<WeightStride*>(p.weight_stride)},
      {{},
       nullptr,
       nullptr,
       reinterpret_cast<Element**>(p.out),
       reinterpret_cast<OutStride*>(p.out_stride)}};
  args.epilogue.thread.alpha = 1.f;
  args.epilogue.thread.beta = 0.f;
  args.hw_info.sm_count = sm_count;
  Gemm gemm;
  check_cutlass(Gemm::can_implement(args));
  if (static_cast<int64_t>(Gemm::get_workspace_size(args)) > grouped_plan::scratch_bytes(sm_count))
    check_cutlass(cutlass::Status::kErrorWorkspaceNull);
  check_cutlass(gemm.initialize(args, scratch, stream));
  check_cutlass(gemm.run(stream));
}

}  // namespace ernie::cuda
