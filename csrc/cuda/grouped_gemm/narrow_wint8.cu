#include "cuda/grouped_gemm/narrow_kernel.cuh"

namespace ernie::cuda {

void launch_grouped_narrow_wint8(const GroupedOperands& p, bool gated, const GemmConfig& c,
                                 cudaStream_t stream) {
  launch_grouped_narrow<DType::kI8>(p, gated, c, stream);
}

}  // namespace ernie::cuda
