// The routed experts of a layer, from the router's choice to their sum:
//
//   gated = grouped_linear_silu_and_mul(hidden_states, gate_up)     rows sorted by moe_sort
//   y = grouped_linear(gated, down)
//   out = moe_combine(y, topk_weights, shared)
//
// by the arithmetic of ops/grouped_gemm.h and ops/moe.h, bit for bit: gated and y are rounded to
// the dtype of hidden_states. A token's result depends on its own row alone (on CUDA with
// core/batch_invariant.h). Nothing waits for the device, so that a graph can hold it.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "ops/grouped_gemm.h"
#include "ops/moe.h"

namespace ernie {

// Experts that are kept alike. Those of a layer may be in several banks, of different kinds and
// widths: ids count the experts of all, bank after bank. A row has the bits of a call with its own
// bank alone (on CUDA with core/batch_invariant.h), and a bank that no token chooses is not read.
struct ExpertBank {
  ExpertWeights gate_up;  // 2 intermediate_size x hidden_size, gate rows first
  ExpertWeights down;     // hidden_size x intermediate_size; may be of another kind
};

struct FusedMoeArgs {
  TensorView out;  // [num_tokens, hidden_size], dtype of hidden_states, last stride 1; may
                   // be shared itself
  TensorView hidden_states;  // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  TensorView topk_weights;   // [num_tokens, top_k], float32, contiguous
  TensorView topk_ids;       // [num_tokens, top_k], int32, contiguous, fewer than 2^31, each in
                             // [0, num_experts)
  std::span<const ExpertBank> banks;  // one or more, of 1 to 4096 experts in all
  std::optional<TensorView> shared;   // [num_tokens, hidden_size], dtype of hidden_states, last
                                      // stride 1
  TensorView workspace;   // uint8, contiguous, fused_moe_workspace_size() bytes or more, at a
                          // multiple of 16 bytes
  bool int8_activations;  // as in GroupedLinearArgs, for all products
};

// The four steps of a call in their order, on the buffers that lie in its workspace; a product for
// each bank. The first products gather their rows of hidden_states by source_rows.
struct FusedMoeSteps {
  MoeSortArgs sort;
  std::vector<GroupedLinearSiluAndMulArgs> gate_up;
  std::vector<GroupedLinearArgs> down;
  MoeCombineArgs combine;
};
FusedMoeSteps fused_moe_steps(const FusedMoeArgs&, Device);

struct FusedMoeSize {
  struct Bank {
    DType gate_up, down;
    int64_t num_experts, intermediate_size;
  };
  DType hidden_states;
  int64_t num_tokens, top_k, hidden_size;
  std::vector<Bank> banks;
};
// Of a call; throws ArgumentError where its tensors or its banks have none.
FusedMoeSize fused_moe_size(const TensorView& hidden_states, const TensorView& topk_ids,
                            std::span<const ExpertBank> banks);
// Throws ArgumentError where the sizes exceed 64 bits. Fewer tokens never need more, nor does a
// call with one of the banks alone.
int64_t fused_moe_workspace_size(Device, const FusedMoeSize&);

void fused_moe(const FusedMoeArgs&, const Stream&);

namespace cpu {
void fused_moe(const FusedMoeArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void fused_moe(const FusedMoeArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
