#include "cuda/common.cuh"
#include "ops/fused_moe.h"
#include "ops/moe.h"

namespace ernie::cuda {

// Four steps without a word to the host: sort, the two products, combine. Rows of hidden_states are
// gathered by the loads of the first product, which ends in its SwiGLU. Ids out of range count as
// the nearest one in range, as in moe_sort.
void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  const FusedMoeBuffers b = fused_moe_buffers(a, stream.device);
  cuda::moe_sort({.expert_offsets = b.expert_offsets,
                  .inverse = b.inverse,
                  .source_rows = b.source_rows,
                  .topk_ids = a.topk_ids,
                  .num_experts = b.expert_offsets.size(0) - 1,
                  .workspace = b.sort_workspace},
                 stream);
  cuda::grouped_linear_silu_and_mul_of_banks(fused_moe_gate_up(a, b), stream);
  cuda::grouped_linear_of_banks(fused_moe_down(a, b), stream);
  cuda::moe_combine({.out = a.out,
                     .x = b.y,
                     .shared = a.shared,
                     .topk_weights = a.topk_weights,
                     .inverse = b.inverse},
                    stream);
}

}  // namespace ernie::cuda
