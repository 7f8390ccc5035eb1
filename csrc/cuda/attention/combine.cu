#include "cuda/attention/combine_kernel.cuh"

namespace ernie::cuda {

template <class T>
void launch_attention_combine(const AttentionParams& p, cudaStream_t stream) {
  const int64_t warps = p.num_tokens * p.num_heads * ceil_div(p.head_dim, kWarpSize);
  launch(attention_combine_kernel<T>,
         {.grid = dim3(static_cast<unsigned>(ceil_div(warps, kCombineWarps))),
          .block = dim3(kCombineWarps * kWarpSize),
          .stream = stream},
         p);
}

template void launch_attention_combine<float>(const AttentionParams&, cudaStream_t);
template void launch_attention_combine<bf16>(const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
