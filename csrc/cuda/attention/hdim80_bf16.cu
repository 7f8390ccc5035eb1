#include "cuda/attention/launch_bf16.cuh"

namespace ernie::cuda {

template void launch_attention_decode<80>(const AttentionConfig&, const AttentionParams&,
                                          cudaStream_t);
template void launch_attention_prefill<80, PagedKeys>(const AttentionConfig&,
                                                      const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
