#include "cuda/attention/float32_kernel.cuh"

namespace ernie::cuda {

template <int kHeadDim, class Keys>
void launch_attention_float32(const AttentionConfig& c, const AttentionParams& p,
                              cudaStream_t stream) {
  launch(attention_float32_kernel<kHeadDim, Keys>,
         {.grid = dim3(static_cast<unsigned>(c.grid_x), static_cast<unsigned>(c.grid_y)),
          .block = dim3(static_cast<unsigned>(kAttentionThreads)),
          .smem = kFloat32SharedBytes<kHeadDim>,
          .stream = stream},
         p);
}

template void launch_attention_float32<64, PagedKeys>(const AttentionConfig&,
                                                      const AttentionParams&, cudaStream_t);
template void launch_attention_float32<128, PagedKeys>(const AttentionConfig&,
                                                       const AttentionParams&, cudaStream_t);
template void launch_attention_float32<256, PagedKeys>(const AttentionConfig&,
                                                       const AttentionParams&, cudaStream_t);
template void launch_attention_float32<64, SegmentKeys>(const AttentionConfig&,
                                                        const AttentionParams&, cudaStream_t);
template void launch_attention_float32<128, SegmentKeys>(const AttentionConfig&,
                                                         const AttentionParams&, cudaStream_t);
template void launch_attention_float32<256, SegmentKeys>(const AttentionConfig&,
                                                         const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
