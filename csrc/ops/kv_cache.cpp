#include "ops/kv_cache.h"

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

void check_cache(const Check& check, const char* name, const TensorView& cache) {
  check.contiguous(name, cache);
  check.writable(name, cache);
}

// What an index tensor must be whatever it says.
void check_indices(const Check& check, const char* name, const TensorView& indices) {
  check.dtype(name, indices, {DType::kI32, DType::kI64});
  check.contiguous(name, indices);
}

}  // namespace

void kv_cache_write(const KvCacheWriteArgs& a, const Stream& stream) {
  const Check check("kv_cache_write");
  check.rank("key", a.key, 3);
  const int64_t num_tokens = a.key.size(0), num_kv_heads = a.key.size(1), head_dim = a.key.size(2);
  check.dtype("key", a.key, {DType::kF32, DType::kBF16});
  check.inner_contiguous("key", a.key);
  check.shape("value", a.value,
              {{"num_tokens", num_tokens}, {"num_kv_heads", num_kv_heads}, {"head_dim", head_dim}});
  check.dtype("value", a.value, {a.key.dtype});
  check.inner_contiguous("value", a.value);
  check.rank("k_cache", a.k_cache, 4);
  const int64_t num_blocks = a.k_cache.size(0), block_size = a.k_cache.size(2);
  for (auto [name, cache] : {std::pair{"k_cache", &a.k_cache}, {"v_cache", &a.v_cache}}) {
    check.shape(name, *cache,
                {{"num_blocks", num_blocks},
                 {"num_kv_heads", num_kv_heads},
                 {"block_size", block_size},
                 {"head_dim", head_dim}});
    check.dtype(name, *cache, {a.key.dtype});
    check_cache(check, name, *cache);
    check.disjoint(name, *cache, "key", a.key);
    check.disjoint(name, *cache, "value", a.value);
    check.disjoint(name, *cache, "slot_mapping", a.slot_mapping);
  }
  check.disjoint("v_cache", a.v_cache, "k_cache", a.k_cache);
  check.shape("slot_mapping", a.slot_mapping, {{"num_tokens", num_tokens}});
  check_indices(check, "slot_mapping", a.slot_mapping);
  check.device(stream.device, {{"key", &a.key},
                               {"value", &a.value},
                               {"k_cache", &a.k_cache},
                               {"v_cache", &a.v_cache},
                               {"slot_mapping", &a.slot_mapping}});
  if (a.key.numel() == 0) return;
  dispatch("kv_cache_write", {&cpu::kv_cache_write, ERNIE_CUDA_FN(cuda::kv_cache_write)}, a,
           stream);
}

void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs& a, const Stream& stream) {
  const Check check("kv_cache_copy_blocks");
  check.rank("k_cache", a.k_cache, 4);
  check_cache(check, "k_cache", a.k_cache);
  check.shape("v_cache", a.v_cache,
              {{"num_blocks", a.k_cache.size(0)},
               {"num_kv_heads", a.k_cache.size(1)},
               {"block_size", a.k_cache.size(2)},
               {"head_dim", a.k_cache.size(3)}});
  check.dtype("v_cache", a.v_cache, {a.k_cache.dtype});
  check_cache(check, "v_cache", a.v_cache);
  check.disjoint("v_cache", a.v_cache, "k_cache", a.k_cache);
  check.rank("block_mapping", a.block_mapping, 2);
  check.shape("block_mapping", a.block_mapping,
              {{"num_pairs", a.block_mapping.size(0)}, {"from and to", 2}});
  check_indices(check, "block_mapping", a.block_mapping);
  check.disjoint("k_cache", a.k_cache, "block_mapping", a.block_mapping);
  check.disjoint("v_cache", a.v_cache, "block_mapping", a.block_mapping);
  check.device(
      stream.device,
      {{"k_cache", &a.k_cache}, {"v_cache", &a.v_cache}, {"block_mapping", &a.block_mapping}});
  if (a.block_mapping.numel() == 0) return;
  dispatch("kv_cache_copy_blocks",
           {&cpu::kv_cache_copy_blocks, ERNIE_CUDA_FN(cuda::kv_cache_copy_blocks)}, a, stream);
}

}  // namespace ernie
