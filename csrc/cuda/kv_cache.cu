#include "core/checked.h"
#include "cuda/common.cuh"
#include "ops/kv_cache.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWide = sizeof(uint4);

bool all_wide(std::initializer_list<int64_t> byte_counts) {
  return std::all_of(byte_counts.begin(), byte_counts.end(),
                     [](int64_t n) { return n % kWide == 0; });
}

int64_t address(const TensorView& t) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data));
}

// ---------------------------------------------------------------------------------------- write

// Everything in units of Unit: an element, or 16 bytes where all rows allow.
template <class Unit>
struct HeadRows {
  const Unit* from;
  Unit* cache;
  int64_t token_stride, head_stride;  // of `from`
};

// Blocks x walk the tokens, y the units of their key and value heads; a thread owns one unit.
// Memory-bound: reads key and value once, writes as much; rows of a head go to their block as they
// are. Slots outside the cache, which the contract excludes, are skipped like -1.
template <class Unit, class Slot>
__global__ void __launch_bounds__(kThreads)
    kv_cache_write_kernel(const HeadRows<Unit> key, const HeadRows<Unit> value,
                          const Slot* slot_mapping, int64_t num_tokens, int64_t num_heads,
                          int64_t row, int64_t block_size, int64_t num_slots) {
  const int64_t items = 2 * num_heads * row;  // row: units of one head
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    const int64_t slot = slot_mapping[t];
    if (slot < 0 || slot >= num_slots) continue;
    const int64_t block = slot / block_size, position = slot - block * block_size;
    for (int64_t item = int64_t{blockIdx.y} * kThreads + threadIdx.x; item < items; item += step) {
      const int64_t both = item / row, i = item - both * row;
      const HeadRows<Unit>& side = both < num_heads ? key : value;
      const int64_t head = both < num_heads ? both : both - num_heads;
      const int64_t to = ((block * num_heads + head) * block_size + position) * row + i;
      side.cache[to] = side.from[t * side.token_stride + head * side.head_stride + i];
    }
  }
}

template <class Unit, class Slot>
void launch_write(const KvCacheWriteArgs& a, const Stream& stream) {
  const int64_t elements = sizeof(Unit) / size_of(a.key.dtype);  // of one unit
  const auto rows = [&](const TensorView& from, const TensorView& cache) {
    return HeadRows<Unit>{from.ptr<Unit>(), cache.ptr<Unit>(), from.step(0) / elements,
                          from.step(1) / elements};
  };
  const int64_t num_tokens = a.key.size(0), num_heads = a.key.size(1);
  const int64_t row = a.key.size(2) / elements;
  const int64_t block_size = a.k_cache.size(2);
  const DeviceGuard guard(stream.device);
  launch(kv_cache_write_kernel<Unit, Slot>,
         {.grid = grid_of_items(num_tokens, 2 * num_heads * row, kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         rows(a.key, a.k_cache), rows(a.value, a.v_cache), a.slot_mapping.ptr<Slot>(), num_tokens,
         num_heads, row, block_size, a.k_cache.size(0) * block_size);
}

template <class Slot>
void write_with(const KvCacheWriteArgs& a, const Stream& stream) {
  const int64_t width = size_of(a.key.dtype);
  const bool wide =
      all_wide({address(a.key), address(a.value), address(a.k_cache), address(a.v_cache),
                a.key.size(2) * width, a.key.step(0) * width, a.key.step(1) * width,
                a.value.step(0) * width, a.value.step(1) * width});
  if (wide)
    launch_write<uint4, Slot>(a, stream);
  else if (width == 2)
    launch_write<uint16_t, Slot>(a, stream);
  else
    launch_write<uint32_t, Slot>(a, stream);
}

// ----------------------------------------------------------------------------------------- copy

// Blocks x walk the pairs, y the units of a cache block, z the two caches. Memory-bound: reads and
// writes every copied block once. Pairs that name no block of the cache are skipped.
template <class Unit, class Index>
__global__ void __launch_bounds__(kThreads)
    kv_cache_copy_kernel(Unit* k_cache, Unit* v_cache, const Index* block_mapping,
                         int64_t num_pairs, int64_t num_blocks, int64_t units) {
  Unit* cache = blockIdx.z == 0 ? k_cache : v_cache;
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t pair = blockIdx.x; pair < num_pairs; pair += gridDim.x) {
    const int64_t from = block_mapping[2 * pair], to = block_mapping[2 * pair + 1];
    if (from < 0 || from >= num_blocks || to < 0 || to >= num_blocks) continue;
    for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < units; i += step)
      cache[to * units + i] = cache[from * units + i];
  }
}

template <class Unit, class Index>
void launch_copy(const KvCacheCopyBlocksArgs& a, int64_t block_bytes, const Stream& stream) {
  const int64_t units = block_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t num_pairs = a.block_mapping.size(0);
  const DeviceGuard guard(stream.device);
  dim3 grid = grid_of_items(num_pairs, units, kThreads);
  grid.z = 2;
  launch(kv_cache_copy_kernel<Unit, Index>,
         {.grid = grid, .block = kThreads, .stream = stream_of(stream)}, a.k_cache.ptr<Unit>(),
         a.v_cache.ptr<Unit>(), a.block_mapping.ptr<Index>(), num_pairs, a.k_cache.size(0), units);
}

template <class Index>
void copy_with(const KvCacheCopyBlocksArgs& a, const Stream& stream) {
  const int64_t block_bytes =
      a.k_cache.size(1) * a.k_cache.size(2) * a.k_cache.size(3) * size_of(a.k_cache.dtype);
  if (all_wide({address(a.k_cache), address(a.v_cache), block_bytes}))
    launch_copy<uint4, Index>(a, block_bytes, stream);
  else
    launch_copy<uint8_t, Index>(a, block_bytes, stream);
}

}  // namespace

void kv_cache_write(const KvCacheWriteArgs& a, const Stream& stream) {
  a.slot_mapping.dtype == DType::kI64 ? write_with<int64_t>(a, stream)
                                      : write_with<int32_t>(a, stream);
}

void kv_cache_copy_blocks(const KvCacheCopyBlocksArgs& a, const Stream& stream) {
  a.block_mapping.dtype == DType::kI64 ? copy_with<int64_t>(a, stream)
                                       : copy_with<int32_t>(a, stream);
}

}  // namespace ernie::cuda
