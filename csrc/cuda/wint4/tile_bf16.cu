#include "cuda/wint4/fragment.cuh"
#include "cuda/wint4/kernels.h"
#include "cuda/wint8/tile_kernel.cuh"

namespace ernie::cuda {

void launch_wint4_tile_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  launch_wint_tile<Wint4Weight>(p, c, stream);
}

}  // namespace ernie::cuda
