#include "cuda/grouped_gemm/tile_kernel.cuh"

namespace ernie::cuda {

void launch_grouped_tile_wint4(const GroupedOperands& p, bool gated, const GemmConfig& c,
                               cudaStream_t stream) {
  launch_grouped_tile<DType::kU8>(p, gated, c, stream);
}

}  // namespace ernie::cuda
