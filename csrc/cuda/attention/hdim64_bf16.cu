#include "cuda/attention/launch_bf16.cuh"

namespace ernie::cuda {

template void launch_attention_decode<64>(const AttentionConfig&, const AttentionParams&,
                                          cudaStream_t);
template void launch_attention_prefill<64, PagedKeys>(const AttentionConfig&,
                                                      const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
