#include "cuda/gemm/sm90_gemm.cuh"

namespace ernie::cuda {

// Two warpgroups share a tile; two blocks of a cluster share the weight's tile by multicast.
void launch_sm90_128x256_bf16(const GemmOperands& p, int sm_count, cudaStream_t stream) {
  using cute::_1, cute::_2, cute::_64, cute::_128, cute::_256;
  Sm90Gemm<cutlass::bfloat16_t, cute::Shape<_128, _256, _64>, cute::Shape<_2, _1, _1>,
           cutlass::gemm::KernelTmaWarpSpecializedCooperative,
           cutlass::epilogue::TmaWarpSpecializedCooperative>::launch(p, sm_count, stream);
}

}  // namespace ernie::cuda
