#include "cuda/gemm/cutlass_activation.h"
#include "cuda/gemm/sm90_gemm.cuh"

namespace ernie::cuda {

// Two warpgroups work on a tile each, one in its epilogue, activation included, while the other
// multiplies.
void launch_sm90_64x128_bf16_activated(const GemmOperands& p, int sm_count, cudaStream_t stream) {
  using cute::_1, cute::_64, cute::_128;
  using Out = cutlass::bfloat16_t;
  Sm90Gemm<Out, cute::Shape<_64, _128, _64>, cute::Shape<_1, _1, _1>,
           cutlass::gemm::KernelTmaWarpSpecializedPingpong, cutlass::epilogue::TmaWarpSpecialized,
           cutlass::epilogue::fusion::LinCombPerColBiasEltAct<Activate, Out, float, Out, void,
                                                              float>>::launch(p, sm_count, stream);
}

}  // namespace ernie::cuda
