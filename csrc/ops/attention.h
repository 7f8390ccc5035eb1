// attention: of ragged query sequences over a paged key/value cache: prefill, decode and any
// mixture in one call. The keys and values of the query tokens are in the cache already.
// varlen_attention: of segments that lie one after the other, without a cache; see its Args.
//
//   Sequence s owns query rows cu_seqlens_q[s] .. cu_seqlens_q[s+1] - 1, the LAST tokens of its
//   seq_lens[s] tokens. Row i of n sees keys j < limit, limit = seq_len - n + i + 1 if causal, else
//   seq_len. Query head h reads kv head h / (num_heads / num_kv_heads).
//
//   out[i] = sum_j p_j v_j / sum_j p_j,  p_j = exp(scale * q.k_j - max_j(scale * q.k_j))
//
// Scores, probabilities and sums are float32; out is rounded once. With bfloat16 on CUDA, and on
// CPUs with a fast bfloat16 dot product, probabilities are rounded to bfloat16 before they multiply
// the values (as exp(score - the largest score so far); the denominator sums them unrounded). Those
// CPUs add two products at a time and take denormals as zero.
//
// Keys are taken in ascending order in splits of kAttentionSplit, each from a fresh start, and the
// splits' results are merged in ascending order: what a row gets depends neither on the other rows,
// nor on chunking, nor on the number of threads. On CUDA that holds with core/batch_invariant.h
// set; without, the shapes of the call decide the splits. A row that sees no key gets zeros. What
// lies in the cache beyond seq_lens[s] is never read, nor are block_table entries that no key
// needs. A block id out of range, which the host cannot see on CUDA, stands for the nearest one in
// range. On CUDA a NaN or infinite value of a token may also reach rows of its own sequence that
// are in the same call and do not see it; on the CPU it does not. Source: Vaswani et al. 2017,
// arXiv:1706.03762; online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; paged cache: Kwon
// et al. 2023, arXiv:2309.06180.
#pragma once

#include "core/tensor.h"

namespace ernie {

inline constexpr int64_t kAttentionSplit = 512;

struct AttentionArgs {
  TensorView out;      // [num_tokens, num_heads, head_dim], dtype of query, last stride 1
  TensorView query;    // [num_tokens, num_heads, head_dim], float32 or bfloat16, last stride 1;
                       // head_dim even, at most 256
  TensorView k_cache;  // [num_blocks, num_kv_heads, block_size, head_dim], dtype of query,
                       // contiguous; block_size 16, 32 or 64
  TensorView v_cache;  // same shape and dtype as k_cache
  TensorView cu_seqlens_q;  // [num_seqs + 1], int32, contiguous: 0, ..., num_tokens, non-decreasing
  TensorView seq_lens;     // [num_seqs], int32, contiguous: tokens in the cache, >= the query rows;
                           // on CUDA also 0: rows that pad a captured step and see no key
  TensorView block_table;  // [num_seqs, max_blocks], int32, contiguous; the first
                           // ceil(seq_len / block_size) ids of a row are valid
  int64_t max_seqlen_q;    // >= the longest query sequence
  int64_t max_seq_len;     // >= the largest of seq_lens
  float scale;             // finite; head_dim^-0.5 is usual
  bool causal;
  TensorView workspace;  // uint8, contiguous, attention_workspace_size() bytes or more
};

// Segment s owns rows cu_seqlens[s] .. cu_seqlens[s+1] - 1 of query, key and value; each of its
// queries sees all of its keys and no other segment's. Arithmetic as above with seq_lens the
// segments' lengths and causal false, but on CUDA keys are never split: what a row gets depends on
// its own segment alone, with core/batch_invariant.h set or without, and no workspace is needed. A
// segment may be empty.
struct VarlenAttentionArgs {
  TensorView out;         // [num_tokens, num_heads, head_dim], dtype of query, last stride 1
  TensorView query;       // [num_tokens, num_heads, head_dim], float32 or bfloat16, last stride 1;
                          // head_dim even, at most 256
  TensorView key;         // [num_tokens, num_kv_heads, head_dim], dtype of query, last stride 1
  TensorView value;       // as key; all three may be parts of one buffer
  TensorView cu_seqlens;  // [num_segments + 1], int32, contiguous: 0, ..., num_tokens,
                          // non-decreasing
  int64_t max_seqlen;     // >= the longest segment
  float scale;            // finite; head_dim^-0.5 is usual
};

// What the host knows of a call without its tensors' contents: all that a plan may depend on.
struct AttentionShape {
  bool bfloat16;
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;
  int64_t num_seqs, max_seqlen_q, max_seq_len;
  bool batch_invariant;
};

// The shape of a call with a query of rank 3, a cache of rank 4 and seq_lens of rank 1.
AttentionShape attention_shape(const TensorView& query, const TensorView& k_cache,
                               const TensorView& seq_lens, int64_t max_seqlen_q,
                               int64_t max_seq_len);

// Bytes of device memory that the call needs for partial results, with batch_invariant or without:
// 0 on the CPU.
int64_t attention_workspace_size(Device device, const AttentionShape& shape);

void attention(const AttentionArgs&, const Stream&);
void varlen_attention(const VarlenAttentionArgs&, const Stream&);

namespace cpu {
void attention(const AttentionArgs&, const Stream&);
void varlen_attention(const VarlenAttentionArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void attention(const AttentionArgs&, const Stream&);
void varlen_attention(const VarlenAttentionArgs&, const Stream&);
int64_t attention_workspace_size(const AttentionShape& shape);
}  // namespace cuda

}  // namespace ernie
