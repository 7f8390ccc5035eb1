// Mixture of experts around its matrix products: which experts a token goes to, its row to each of
// them, and their results back.
//
//   route     logits of E experts -> k of them, and their weights, for each of T tokens
//   sort      T * k choices (t, j) -> their order by expert, the expert order
//   dispatch  the same, and the rows of the tokens copied into that order
//   combine   rows in expert order -> their weighted sum for each token
//
// A token's results depend on its own row alone. Both backends give the same bits.
// Source: Ernie4_5_Moe of transformers 5.23, whose undefined orders (of equal scores, of sums) are
// defined here.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace ernie {

//   p = softmax(router_logits[t])                    over all E experts
//   ids = the k largest p + correction_bias          descending; of equal ones the lower id first
//   weights = p[ids] / max(sum(p[ids]), norm_min)
//
// all in float32, by the arithmetic of moe_core.h: the bias chooses and never weighs. A row with a
// logit or a bias that is not finite gets the experts 0 to k - 1 with weight NaN, and flags[t] = 1;
// the flags of other rows stay as they are, so that one array can serve all layers of a step.
//
// Of several banks of E experts each, a token has one: with b = banks[t] its row is that of the
// columns b E to b E + E - 1 alone, the bias likewise, and b E is added to its ids. What the other
// columns hold does not matter.
struct MoeRouteArgs {
  TensorView topk_weights;          // [num_tokens, top_k], float32, contiguous
  TensorView topk_ids;              // [num_tokens, top_k], int32, contiguous; distinct in a row
  std::optional<TensorView> flags;  // [num_tokens], uint8, contiguous
  TensorView router_logits;    // [num_tokens, num_banks * num_experts], float32, last stride 1,
                               // 1 to 4096 columns
  TensorView correction_bias;  // [num_banks * num_experts], of several banks also
                               // [num_banks, num_experts]; float32, contiguous
  std::optional<TensorView> banks;  // [num_tokens], uint8, contiguous, each below num_banks; may
                                    // be left out of a call with one bank
  int64_t num_banks;                // divides the columns of router_logits
  int64_t top_k;                    // 1 <= top_k <= num_experts
  float norm_min;                   // finite, > 0
};

// Entry i = t * top_k + j is the choice topk_ids[t, j]. The expert order has the entries by
// (expert, i): stable, so equal in every run.
//
//   expert e's entries are at expert_offsets[e] ... expert_offsets[e + 1] - 1
//   inverse[t, j]    the place of entry (t, j)
//   source_rows[m]   the token t of the entry at place m
struct MoeSortArgs {
  TensorView expert_offsets;  // [num_experts + 1], int64, contiguous; last: num_tokens * top_k
  TensorView inverse;         // [num_tokens, top_k], int32, contiguous
  std::optional<TensorView> source_rows;  // [num_tokens * top_k], int32, contiguous
  TensorView topk_ids;   // [num_tokens, top_k], int32, contiguous, fewer than 2^31,
                         // each in [0, num_experts)
  int64_t num_experts;   // 1 to 4096
  TensorView workspace;  // uint8, contiguous, moe_sort_workspace_size() bytes or more
};

// Sorts, then copies rows to the bit:
//
//   permuted[inverse[t, j]] = hidden_states[t]
struct MoeDispatchArgs {
  TensorView permuted;       // [num_tokens * top_k, hidden_size], dtype of hidden_states, last
                             // stride 1
  TensorView hidden_states;  // [num_tokens, hidden_size], float32 or bfloat16, last stride 1
  MoeSortArgs sort;
};

//   out[t] = round(sum_j topk_weights[t, j] * x[inverse[t, j]] + shared[t])
//
// in float32, each product and sum rounded, j ascending from 0, shared last; rounded to out once.
// (transformers rounds to the model's dtype the weights, each product, each partial sum and the sum
// of the experts; here nothing is rounded twice.)
struct MoeCombineArgs {
  TensorView out;  // [num_tokens, hidden_size], dtype of x, last stride 1; may be shared itself
  TensorView x;    // [num_tokens * top_k, hidden_size], float32 or bfloat16, last stride 1
  std::optional<TensorView> shared;  // [num_tokens, hidden_size], dtype of x, last stride 1
  TensorView topk_weights;           // [num_tokens, top_k], float32, contiguous
  TensorView inverse;                // [num_tokens, top_k], int32, contiguous, each in
                                     // [0, num_tokens * top_k)
};

// Bytes of scratch the sort needs: 0 on the CPU.
int64_t moe_sort_workspace_size(Device device, int64_t num_entries, int64_t num_experts);

void moe_route(const MoeRouteArgs&, const Stream&);
void moe_sort(const MoeSortArgs&, const Stream&);
void moe_dispatch(const MoeDispatchArgs&, const Stream&);
void moe_combine(const MoeCombineArgs&, const Stream&);

namespace cpu {
void moe_route(const MoeRouteArgs&, const Stream&);
void moe_sort(const MoeSortArgs&, const Stream&);
void moe_dispatch(const MoeDispatchArgs&, const Stream&);
void moe_combine(const MoeCombineArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
// Ids, places and banks out of range count as the nearest one in range.
void moe_route(const MoeRouteArgs&, const Stream&);
void moe_sort(const MoeSortArgs&, const Stream&);
void moe_dispatch(const MoeDispatchArgs&, const Stream&);
void moe_combine(const MoeCombineArgs&, const Stream&);
int64_t moe_sort_workspace_size(int64_t num_entries, int64_t num_experts);
}  // namespace cuda

}  // namespace ernie
