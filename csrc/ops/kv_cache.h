// Paged key/value cache: blocks of block_size tokens, [num_blocks, num_kv_heads, block_size,
// head_dim]. Token slot s lies in block s / block_size at row s % block_size. Keys are stored
// rotated.
#pragma once

#include "core/tensor.h"

namespace ernie {

// k_cache[slot_mapping[t]] = key[t], v_cache[slot_mapping[t]] = value[t]; a slot of -1 skips t.
// Two tokens never share a slot.
struct KvCacheWriteArgs {
  TensorView key;      // [num_tokens, num_kv_heads, head_dim], float32 or bfloat16, last stride 1
  TensorView value;    // same shape and dtype as key, last stride 1
  TensorView k_cache;  // [num_blocks, num_kv_heads, block_size, head_dim], dtype of key,
                       // contiguous
  TensorView v_cache;  // same shape and dtype as k_cache, contiguous
  TensorView slot_mapping;  // [num_tokens], int32 or int64, contiguous; -1 or in
                            // [0, num_blocks * block_size)
};

// Block block_mapping[i, 1] becomes a copy of block block_mapping[i, 0], in both caches. No block
// is written twice or both read and written.
struct KvCacheCopyBlocksArgs {
  TensorView k_cache;        // [num_blocks, num_kv_heads, block_size, head_dim], any dtype,
                             // contiguous
  TensorView v_cache;        // same shape and dtype as k_cache
  TensorView block_mapping;  // [num_pairs, 2], int32 or int64, contiguous: from, to
};

void kv_cache_write(const KvCacheWriteArgs&, const Stream&);
void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs&, const Stream&);

namespace cpu {
void kv_cache_write(const KvCacheWriteArgs&, const Stream&);
void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void kv_cache_write(const KvCacheWriteArgs&, const Stream&);
void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
