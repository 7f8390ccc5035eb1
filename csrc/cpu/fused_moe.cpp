#include "ops/fused_moe.h"

#include <string>

#include "core/check.h"
#include "ops/moe.h"

namespace ernie::cpu {
namespace {

void check_ids(const FusedMoeArgs& a) {
  const int32_t* ids = a.topk_ids.ptr<int32_t>();
  const int64_t num_experts = a.gate_up.weight.size(0), top_k = a.topk_ids.size(1);
  for (int64_t i = 0; i < a.topk_ids.numel(); ++i)
    if (ids[i] < 0 || ids[i] >= num_experts)
      Check("fused_moe")
          .fail("topk_ids", "experts from 0 to " + std::to_string(num_experts - 1),
                std::to_string(ids[i]) + " at token " + std::to_string(i / top_k) + ", slot " +
                    std::to_string(i % top_k));
}

}  // namespace

void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  check_ids(a);
  const FusedMoeBuffers b = fused_moe_buffers(a, stream.device);
  cpu::moe_sort({.expert_offsets = b.expert_offsets,
                 .inverse = b.inverse,
                 .source_rows = b.source_rows,
                 .topk_ids = a.topk_ids,
                 .num_experts = a.gate_up.weight.size(0),
                 .workspace = b.sort_workspace},
                stream);
  cpu::grouped_linear_silu_and_mul({.out = b.gated,
                                    .x = a.hidden_states,
                                    .weight = a.gate_up,
                                    .expert_offsets = b.expert_offsets,
                                    .source_rows = b.source_rows,
                                    .int8_activations = a.int8_activations},
                                   stream);
  cpu::grouped_linear({.out = b.y,
                       .x = b.gated,
                       .weight = a.down,
                       .expert_offsets = b.expert_offsets,
                       .source_rows = std::nullopt,
                       .int8_activations = a.int8_activations},
                      stream);
  cpu::moe_combine({.out = a.out,
                    .x = b.y,
                    .shared = a.shared,
                    .topk_weights = a.topk_weights,
                    .inverse = b.inverse},
                   stream);
}

}  // namespace ernie::cpu
