#include "cuda/wint8/kernels.h"
#include "cuda/wint8/narrow_kernel.cuh"

namespace ernie::cuda {

void launch_wint8_narrow_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  launch_wint_narrow<Wint8Weight>(p, c, stream);
}

}  // namespace ernie::cuda
