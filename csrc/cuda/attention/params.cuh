// What every attention kernel is given, where its keys lie, and the launchers by instantiation.
#pragma once

#include "core/bf16.h"
#include "cuda/attention/config.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/common.cuh"

namespace ernie::cuda {

// Keys, or values: a cache, whose strides its shape tells, or rows of [tokens, heads, head_dim].
struct AttentionSource {
  const void* data;
  int64_t token_stride, head_stride;
};

// Shapes as in ops/attention.h, strides in elements. Rows of a kv head are its query rows times the
// heads of its group: row r is token r / group_size, head r % group_size of the group.
struct AttentionParams {
  void* out;
  const void* query;
  AttentionSource key, value;
  const int32_t* cu_seqlens_q;
  const int32_t* seq_lens;
  const int32_t* block_table;
  float* partial_out;       // [num_splits, num_tokens, num_heads, head_dim], not normalised
  RowState* partial_state;  // [num_splits, num_tokens, num_heads]
  int64_t out_token_stride, out_head_stride;
  int64_t query_token_stride, query_head_stride;
  int64_t num_tokens, num_blocks, max_blocks;
  int64_t tiles_per_seq, num_splits, split_size, min_split_size;
  int32_t num_seqs, num_heads, num_kv_heads, group_size, head_dim;
  int32_t block_size_log2;
  float scale_log2;     // |scale| log2(e), > 0: softmax is taken to base 2
  uint32_t query_sign;  // 0x8000 where scale is negative: the query is negated
  bool causal;
  bool ragged;
  bool merge_in_block;
  bool keys_aligned;   // rows of keys and values are whole and aligned units of 16 bytes
  bool query_aligned;  // and those of the query
  bool out_aligned;    // rows of out are aligned to 4 bytes
};

class PagedKeys;    // in the pages of a cache
class SegmentKeys;  // row after row, those of a segment's queries; never with splits

// One per instantiation file. Keys is one of the two above: see keys.cuh.
template <int kHeadDim>
void launch_attention_decode(const AttentionConfig&, const AttentionParams&, cudaStream_t);
template <int kHeadDim, class Keys>
void launch_attention_prefill(const AttentionConfig&, const AttentionParams&, cudaStream_t);
template <int kHeadDim, class Keys>
void launch_attention_float32(const AttentionConfig&, const AttentionParams&, cudaStream_t);
// Merges the splits' partial results into out, T its element type.
template <class T>
void launch_attention_combine(const AttentionParams&, cudaStream_t);

}  // namespace ernie::cuda
