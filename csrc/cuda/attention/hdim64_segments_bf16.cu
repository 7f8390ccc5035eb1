#include "cuda/attention/launch_bf16.cuh"

namespace ernie::cuda {

template void launch_attention_prefill<64, SegmentKeys>(const AttentionConfig&,
                                                        const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
