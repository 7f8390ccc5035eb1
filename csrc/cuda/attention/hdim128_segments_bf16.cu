#include "cuda/attention/launch_bf16.cuh"

namespace ernie::cuda {

template void launch_attention_prefill<128, SegmentKeys>(const AttentionConfig&,
                                                         const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
