// linear on Hopper by CUTLASS's warp-specialised kernel: TMA brings tiles of x and the weight into
// shared memory, one or two warpgroups multiply them with wgmma, and the epilogue adds the bias and
// leaves through TMA. Bound by the tensor cores once tiles fill the GPU. Needs no workspace.
//
// Each instantiation takes half a minute to compile: one a file, and only those of config.h.
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/gemm/cutlass_status.h"
#include "cuda/gemm/kernels.h"

namespace ernie::cuda {

// beta is 0 and the source void: out = accumulator + bias.
template <class Out>
using AddBias =
    cutlass::epilogue::fusion::LinCombPerColBias<Out, float, cutlass::bfloat16_t, void, float>;

template <class Out, class Tile, class Cluster, class MainloopSchedule, class EpilogueSchedule,
          class Fusion = AddBias<Out>>
struct Sm90Gemm {
  using Element = cutlass::bfloat16_t;
  static constexpr int kAlignment = 8;  // elements: 16 bytes
  static constexpr int kOutAlignment = 16 / sizeof(Out);

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      cutlass::layout::RowMajor, kOutAlignment, Out, cutlass::layout::RowMajor, kOutAlignment,
      EpilogueSchedule, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor,
      kAlignment, Element, cutlass::layout::ColumnMajor, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static void launch(const GemmOperands& p, int sm_count, cudaStream_t stream) {
    typename Gemm::Arguments args{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.m, p.n, p.k, 1},
        {static_cast<const Element*>(p.x),
         {p.x_stride, {}, {}},
         static_cast<const Element*>(p.weight),
         {int64_t{p.k}, {}, {}}},
        {{}, nullptr, {}, static_cast<Out*>(p.out), {p.out_stride, {}, {}}}};
    args.epilogue.thread.bias_ptr = static_cast<const Element*>(p.bias);
    if constexpr (Fusion::IsEltActSupported) args.epilogue.thread.activation = {p.activation};
    args.hw_info.sm_count = sm_count;
    Gemm gemm;
    check_cutlass(Gemm::can_implement(args));
    if (Gemm::get_workspace_size(args) != 0) check_cutlass(cutlass::Status::kErrorWorkspaceNull);
    check_cutlass(gemm.initialize(args, nullptr, stream));
    check_cutlass(gemm.run(stream));
  }
};

}  // namespace ernie::cuda
