// From logits to the next token, row by row with the row's own parameters.
#pragma once

#include "core/tensor.h"

namespace ernie {

// Penalties for tokens that have occurred, in place. For every distinct id of the row's tokens:
//
//   repetition (prompt and output):  l = l > 0 ? l / r : l * r
//   frequency  (output only):        l -= f * count
//   presence   (output only):        l -= p
//
// Source: repetition: Keskar et al. 2019, arXiv:1909.05858; the others as in the OpenAI API.
struct ApplyPenaltiesArgs {
  TensorView logits;       // [num_seqs, vocab_size], float32, read and written, last stride 1,
                           // vocab_size < 2^31
  TensorView token_ids;    // [total], int64, contiguous, each in [0, vocab_size): the rows'
                           // tokens end to end, prompt then output
  TensorView cu_tokens;    // [num_seqs + 1], int32, contiguous: first token of each row, total
  TensorView prompt_lens;  // [num_seqs], int32, contiguous: how many are prompt
  TensorView repetition_penalty;  // [num_seqs], float32, contiguous, finite, > 0; 1 = none
  TensorView presence_penalty;    // [num_seqs], float32, contiguous, finite; 0 = none
  TensorView frequency_penalty;   // [num_seqs], float32, contiguous, finite; 0 = none
};

// One token per row. In this order:
//
//   ids >= vocab_limit can never be chosen
//   temperature 0: the largest logit, the lower id where two are equal; else l = l / temperature
//   top_k: only the k largest logits stay, of equal ones the lower ids; 0 = all
//   top_p: of those in descending order (equal ones: lower id first), the shortest prefix whose
//          probabilities sum to top_p or more
//   min_p: only what has at least min_p times the largest probability
//   the token: with what stays in ascending id order, the first whose cumulative probability
//          exceeds u
//
// u in [0, 1) comes from the counter-based generator Philox4x32-10, keyed by the row's seed, at the
// row's position (sampling_core.h): a row's token depends on nothing else. A row with a NaN or +inf
// or without any finite logit gets -1; what stands at ids >= vocab_limit does not count.
// Source: top_p: Holtzman et al. 2019, arXiv:1904.09751; min_p: Nguyen et al. 2024,
// arXiv:2407.01082; Philox: Salmon et al. 2011, doi:10.1145/2063384.2063405.
struct SampleArgs {
  TensorView out;          // [num_seqs], int64, contiguous
  TensorView logits;       // [num_seqs, vocab_size], float32, last stride 1, vocab_size < 2^31
  TensorView temperature;  // [num_seqs], float32, contiguous, finite, >= 0
  TensorView top_k;        // [num_seqs], int32, contiguous, >= 0
  TensorView top_p;        // [num_seqs], float32, contiguous, in (0, 1]
  TensorView min_p;        // [num_seqs], float32, contiguous, in [0, 1]
  TensorView seed;         // [num_seqs], int64, contiguous
  TensorView position;     // [num_seqs], int64, contiguous: index of the token to be drawn
  int64_t vocab_limit;     // in [1, vocab_size]
  TensorView workspace;    // uint8, contiguous, sample_workspace_size() bytes or more
};

// Bytes of scratch the call needs: 0 on the CPU.
int64_t sample_workspace_size(Device device, int64_t num_seqs, int64_t vocab_size);

void apply_penalties(const ApplyPenaltiesArgs&, const Stream&);
void sample(const SampleArgs&, const Stream&);

namespace cpu {
void apply_penalties(const ApplyPenaltiesArgs&, const Stream&);
void sample(const SampleArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void apply_penalties(const ApplyPenaltiesArgs&, const Stream&);
void sample(const SampleArgs&, const Stream&);
int64_t sample_workspace_size(int64_t num_seqs, int64_t vocab_size);
}  // namespace cuda

}  // namespace ernie
