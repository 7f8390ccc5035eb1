#include <cutlass/epilogue/thread/linear_combination_generic.h>

#include "cuda/gemm/cutlass_activation.h"
#include "cuda/gemm/sm80_gemm.cuh"

namespace ernie::cuda {

void launch_sm80_128x128_bf16_activated(const GemmOperands& p, int, cudaStream_t stream) {
  using Output = cutlass::epilogue::thread::LinearCombinationGeneric<Activate, cutlass::bfloat16_t,
                                                                     kSm80Alignment, float, float>;
  typename Output::Params output(1.f, p.bias != nullptr ? 1.f : 0.f);
  output.activation = p.activation;
  launch_sm80_128x128<Output>(p, output, stream);
}

}  // namespace ernie::cuda
