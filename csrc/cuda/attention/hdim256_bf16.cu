#include "cuda/attention/launch_bf16.cuh"

namespace ernie::cuda {

template void launch_attention_decode<256>(const AttentionConfig&, const AttentionParams&,
                                           cudaStream_t);
template void launch_attention_prefill<256, PagedKeys>(const AttentionConfig&,
                                                       const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
