// Where the keys and values of a block's kv head lie. A kernel fetches what it needs to know of a
// key's place a step before it asks for the row.
//
//   kWideHeadDim                     see config.h
//   static int64_t count(p, seq)     keys of a sequence
//   void fetch(key)                  key, which the sequence has, opens the next rows
//   const T* rows<T>(source, key)    its row of p.key or p.value, after fetch(); those after it, to
//                                    the end of its unit of 16 keys,
//   stride(source)                   follow at this distance, in elements
#pragma once

#include "cuda/attention/work.cuh"

namespace ernie::cuda {

class PagedKeys {
 public:
  static constexpr int64_t kWideHeadDim = kAttentionWidePages;

  // Whatever seq_lens holds, the row of the block table covers it.
  __device__ __forceinline__ static int64_t count(const AttentionParams& p, int seq) {
    const int64_t capacity = p.num_blocks == 0 ? 0 : p.max_blocks << p.block_size_log2;
    return attention_clamp(p.seq_lens[seq], 0, capacity);
  }

  __device__ __forceinline__ PagedKeys(const AttentionParams& p, const Work& w)
      : params_(p), ids_(p.block_table + w.seq * p.max_blocks), kv_head_(w.kv_head) {}

  __device__ __forceinline__ void fetch(int key) { id_ = ids_[key >> params_.block_size_log2]; }

  template <class T>
  __device__ __forceinline__ const T* rows(const AttentionSource& source, int key) const {
    const int block_size = 1 << params_.block_size_log2;
    return static_cast<const T*>(source.data) +
           kv_cache_offset(id_, kv_head_, key & (block_size - 1), params_.num_blocks,
                           params_.num_kv_heads, block_size, params_.head_dim);
  }
  __device__ __forceinline__ int stride(const AttentionSource&) const { return params_.head_dim; }

 private:
  const AttentionParams& params_;
  const int32_t* ids_;
  int kv_head_;
  int32_t id_ = 0;
};

class SegmentKeys {
 public:
  static constexpr int64_t kWideHeadDim = kAttentionWideSegments;

  __device__ __forceinline__ static int64_t count(const AttentionParams& p, int seq) {
    return query_sequence(p, seq).num_queries;
  }

  __device__ __forceinline__ SegmentKeys(const AttentionParams&, const Work& w)
      : first_token_(w.first_token), kv_head_(w.kv_head) {}

  __device__ __forceinline__ void fetch(int) {}

  template <class T>
  __device__ __forceinline__ const T* rows(const AttentionSource& source, int key) const {
    return static_cast<const T*>(source.data) + (first_token_ + key) * source.token_stride +
           kv_head_ * source.head_stride;
  }
  __device__ __forceinline__ int64_t stride(const AttentionSource& source) const {
    return source.token_stride;
  }

 private:
  int64_t first_token_;
  int kv_head_;
};

}  // namespace ernie::cuda
