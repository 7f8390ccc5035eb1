#include "ops/fused_moe.h"

namespace ernie::cuda {

// Without a word to the host between the steps. Ids out of range count as the nearest one in range,
// as in moe_sort.
void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  const FusedMoeSteps steps = fused_moe_steps(a, stream.device);
  cuda::moe_sort(steps.sort, stream);
  cuda::grouped_linear_silu_and_mul_of_banks(steps.gate_up, stream);
  cuda::grouped_linear_of_banks(steps.down, stream);
  cuda::moe_combine(steps.combine, stream);
}

}  // namespace ernie::cuda
