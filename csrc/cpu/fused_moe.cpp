#include "ops/fused_moe.h"

#include <string>

#include "core/check.h"

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
  const FusedMoeSteps steps = fused_moe_steps(a, stream.device);
  check_ids(a, steps.sort.num_experts);
  cpu::moe_sort(steps.sort, stream);
  cpu::grouped_linear_silu_and_mul_of_banks(steps.gate_up, stream);
  cpu::grouped_linear_of_banks(steps.down, stream);
  cpu::moe_combine(steps.combine, stream);
}

}  // namespace ernie::cpu
