#include "ops/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/checked.h"
#include "core/parallel.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kBytesPerChunk = 32768;

int64_t index_at(const TensorView& indices, int64_t i) {
  return indices.dtype == DType::kI32 ? indices.ptr<int32_t>()[i] : indices.ptr<int64_t>()[i];
}

// Every slot exists, and none is written by two tokens: the order of the writes is not defined.
void check_slots(const TensorView& slot_mapping, int64_t num_slots) {
  const Check check("kv_cache_write");
  const int64_t num_tokens = slot_mapping.size(0);
  int64_t highest = -1;
  bool ascending = true;  // as of one sequence: then no slot comes twice
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t slot = index_at(slot_mapping, t);
    if (slot < -1 || slot >= num_slots)
      check.fail("slot_mapping", "-1 or a slot below " + std::to_string(num_slots),
                 std::to_string(slot) + " for token " + std::to_string(t));
    if (slot == -1) continue;
    ascending = ascending && slot > highest;
    highest = std::max(highest, slot);
  }
  if (ascending) return;
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < num_tokens; ++t)
    if (const int64_t slot = index_at(slot_mapping, t); slot != -1) slots.push_back(slot);
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice != slots.end())
    check.fail("slot_mapping", "each slot once",
               "slot " + std::to_string(*twice) + " for two tokens");
}

// Every block exists, and the copies may run in any order.
void check_blocks(const TensorView& block_mapping, int64_t num_blocks) {
  const Check check("kv_cache_copy_blocks");
  const int64_t num_pairs = block_mapping.size(0);
  std::vector<int64_t> written;
  for (int64_t i = 0; i < 2 * num_pairs; ++i) {
    const int64_t block = index_at(block_mapping, i);
    if (block < 0 || block >= num_blocks)
      check.fail("block_mapping", "blocks from 0 to " + std::to_string(num_blocks - 1),
                 std::to_string(block) + " in pair " + std::to_string(i / 2));
    if (i % 2 == 1) written.push_back(block);
  }
  std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end())
    check.fail("block_mapping", "each block written once",
               "block " + std::to_string(*twice) + " written twice");
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t from = index_at(block_mapping, 2 * i);
    if (std::binary_search(written.begin(), written.end(), from))
      check.fail("block_mapping", "no block both read and written",
                 "block " + std::to_string(from) + ", which is");
  }
}

}  // namespace

void kv_cache_write(const KvCacheWriteArgs& a, const Stream&) {
  const int64_t num_heads = a.key.size(1), block_size = a.k_cache.size(2);
  check_slots(a.slot_mapping, a.k_cache.size(0) * block_size);

  const int64_t itemsize = size_of(a.key.dtype), row_bytes = a.key.size(2) * itemsize;
  const auto scatter = [&](const TensorView& from, const TensorView& cache, int64_t t,
                           int64_t slot) {
    const char* row = from.ptr<char>() + t * from.step(0) * itemsize;
    char* to = cache.ptr<char>() +
               (slot / block_size * num_heads * block_size + slot % block_size) * row_bytes;
    for (int64_t h = 0; h < num_heads; ++h)
      std::memcpy(to + h * block_size * row_bytes, row + h * from.step(1) * itemsize, row_bytes);
  };
  parallel_for(a.key.size(0), ceil_div(kBytesPerChunk, 2 * num_heads * row_bytes),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const int64_t slot = index_at(a.slot_mapping, t);
                   if (slot < 0) continue;
                   scatter(a.key, a.k_cache, t, slot);
                   scatter(a.value, a.v_cache, t, slot);
                 }
               });
}

void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs& a, const Stream&) {
  check_blocks(a.block_mapping, a.k_cache.size(0));

  const int64_t block_bytes =
      a.k_cache.size(1) * a.k_cache.size(2) * a.k_cache.size(3) * size_of(a.k_cache.dtype);
  if (block_bytes == 0) return;
  parallel_for(a.block_mapping.size(0), ceil_div(kBytesPerChunk, 2 * block_bytes),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t from = index_at(a.block_mapping, 2 * i) * block_bytes;
                   const int64_t to = index_at(a.block_mapping, 2 * i + 1) * block_bytes;
                   for (char* cache : {a.k_cache.ptr<char>(), a.v_cache.ptr<char>()})
                     std::memcpy(cache + to, cache + from, block_bytes);
                 }
               });
}

}  // namespace ernie::cpu
