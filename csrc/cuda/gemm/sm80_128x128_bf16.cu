#include <cutlass/epilogue/thread/linear_combination.h>

#include "cuda/gemm/sm80_gemm.cuh"

namespace ernie::cuda {

void launch_sm80_128x128_bf16(const GemmOperands& p, int, cudaStream_t stream) {
  using Output = cutlass::epilogue::thread::LinearCombination<cutlass::bfloat16_t, kSm80Alignment,
                                                              float, float>;
  launch_sm80_128x128<Output>(p, {1.f, p.bias != nullptr ? 1.f : 0.f}, stream);
}

}  // namespace ernie::cuda
