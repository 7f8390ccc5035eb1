#include "cuda/wint4/fragment.cuh"
#include "cuda/wint4/kernels.h"
#include "cuda/wint8/narrow_kernel.cuh"

namespace ernie::cuda {

void launch_wint4_narrow_bf16(const GemmOperands& p, const GemmConfig& c, cudaStream_t stream) {
  launch_wint_narrow<Wint4Weight>(p, c, stream);
}

}  // namespace ernie::cuda
