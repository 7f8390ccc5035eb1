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
                  .num_experts = a.gate_up.weight.size(0),
                  .workspace = b.sort_workspace},
                 stream);
  cuda::grouped_linear_silu_and_mul({.out = b.gated,
                                     .x = a.hidden_states,
                                     .weight = a.gate_up,
                                     .expert_offsets = b.expert_offsets,
                                     .source_rows = b.source_rows,
                                     .int8_activations = false,
                                     .workspace = b.product_workspace},
                                    stream);
  cuda::grouped_linear({.out = b.y,
                        .x = b.gated,
                        .weight = a.down,
                        .expert_offsets = b.expert_offsets,
                        .source_rows = std::nullopt,
                        .int8_activations = false,
                        .workspace = b.product_workspace},
                       stream);
  cuda::moe_combine({.out = a.out,
                     .x = b.y,
                     .shared = a.shared,
                     .topk_weights = a.topk_weights,
                     .inverse = b.inverse},
                    stream);
}

}  // namespace ernie::cuda
