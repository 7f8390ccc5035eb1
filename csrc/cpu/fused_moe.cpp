#include "ops/fused_moe.h"

#include <string>

#include "core/check.h"
#include "ops/moe.h"

namespace ernie::cpu {
namespace {

void check_ids(const FusedMoeArgs& a, int64_t num_experts) {
  const int32_t* ids = a.topk_ids.ptr<int32_t>();
  const int64_t top_k = a.topk_ids.size(1);
  for (int64_t i = 0; i < a.topk_ids.numel(); ++i)
    if (ids[i] < 0 || ids[i] >= num_experts)
      Check("fused_moe")
          .fail("topk_ids", "experts from 0 to " + std::to_string(num_experts - 1),
                std::to_string(ids[i]) + " at token " + std::to_string(i / top_k) + ", slot " +
                    std::to_string(i % top_k));
}

}  // namespace

void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  const FusedMoeBuffers b = fused_moe_buffers(a, stream.device);
  const int64_t num_experts = b.expert_offsets.size(0) - 1;
  check_ids(a, num_experts);
  cpu::moe_sort({.expert_offsets = b.expert_offsets,
                 .inverse = b.inverse,
                 .source_rows = b.source_rows,
                 .topk_ids = a.topk_ids,
                 .num_experts = num_experts,
                 .workspace = b.sort_workspace},
                stream);
  cpu::grouped_linear_silu_and_mul_of_banks(fused_moe_gate_up(a, b), stream);
  cpu::grouped_linear_of_banks(fused_moe_down(a, b), stream);
  cpu::moe_combine({.out = a.out,
                    .x = b.y,
                    .shared = a.shared,
                    .topk_weights = a.topk_weights,
                    .inverse = b.inverse},
                   stream);
}

}  // namespace ernie::cpu
