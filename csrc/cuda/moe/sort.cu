#include "core/checked.h"
#include "cuda/common.cuh"
#include "ops/moe.h"
#include "ops/moe_core.h"

namespace ernie::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Entries {
  int64_t* expert_offsets;
  int32_t* inverse;
  int32_t* source_rows;  // may be null
  const int32_t* ids;
  int num_entries, top_k, num_experts;
};

__device__ __forceinline__ int expert_of(const Entries& a, int i) {
  return moe_expert(a.ids[i], a.num_experts);
}

__device__ __forceinline__ void place_entry(const Entries& a, int i, int place) {
  a.inverse[i] = place;
  if (a.source_rows != nullptr) a.source_rows[place] = i / a.top_k;
}

// The sum of `v` over the threads below this one; the block's in *total. `partial` holds a value
// per warp; the caller synchronises before it is used again.
template <int kThreads>
__device__ __forceinline__ int sum_before(int v, int* partial, int* total) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int inclusive = v;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int below = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  if (lane == kWarpSize - 1) partial[warp] = inclusive;
  __syncthreads();
  int before = inclusive - v;
  *total = 0;
  for (int w = 0; w < kThreads / kWarpSize; ++w) {
    if (w < warp) before += partial[w];
    *total += partial[w];
  }
  return before;
}

// The warp's entries of one step, one a lane, in turn: returns how many of the lane's expert came
// before, those of earlier steps as counted in `seen`, which it brings up to date. expert < 0: no
// entry.
__device__ __forceinline__ int rank_in_warp(int expert, int* seen) {
  const unsigned same = __match_any_sync(kAllLanes, expert);
  const unsigned below = same & ((1u << threadIdx.x % kWarpSize) - 1);
  const int before = expert < 0 ? 0 : seen[expert];
  __syncwarp();
  if (expert >= 0 && below == 0) seen[expert] = before + __popc(same);
  __syncwarp();  // before the next step, or what comes after the last
  return before + __popc(below);
}

// ------------------------------------------------------------------------ few entries: one block

constexpr int kBlockThreads = 256;
constexpr int kBlockWarps = kBlockThreads / kWarpSize;
constexpr int kBlockSteps = kMoeSortBlockEntries / kBlockThreads;

// Each warp owns a stretch of the entries and keeps their ranks; what the experts have in the
// stretches before is summed, and the entries placed. Bound by latency: one step for 256 entries.
__global__ void __launch_bounds__(kBlockThreads) moe_sort_block_kernel(const Entries a) {
  ERNIE_DYNAMIC_SHARED(int, counts);  // [kBlockWarps][num_experts]; then first places
  ERNIE_SHARED(int, partial, [kBlockWarps]);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int n = a.num_experts;
  for (int i = threadIdx.x; i < kBlockWarps * n; i += kBlockThreads) counts[i] = 0;
  __syncthreads();

  const int steps = (a.num_entries + kBlockThreads - 1) / kBlockThreads;
  const int first = warp * steps * kWarpSize + lane;
  int expert[kBlockSteps], rank[kBlockSteps];
#pragma unroll
  for (int s = 0; s < kBlockSteps; ++s) {
    if (s >= steps) break;
    const int i = first + s * kWarpSize;
    expert[s] = i < a.num_entries ? expert_of(a, i) : -1;
    rank[s] = rank_in_warp(expert[s], counts + warp * n);
  }
  __syncthreads();

  int earlier = 0;  // entries of all experts before this round's
  for (int base = 0; base < n; base += kBlockThreads) {
    const int e = base + static_cast<int>(threadIdx.x);
    int own = 0;
    if (e < n)
      for (int w = 0; w < kBlockWarps; ++w) own += counts[w * n + e];
    int total;
    int place = earlier + sum_before<kBlockThreads>(own, partial, &total);
    earlier += total;
    if (e < n) {
      a.expert_offsets[e] = place;
      for (int w = 0; w < kBlockWarps; ++w) {
        const int count = counts[w * n + e];
        counts[w * n + e] = place;
        place += count;
      }
    }
    __syncthreads();  // before the next round's `partial`, and before places are read
  }
  if (threadIdx.x == 0) a.expert_offsets[n] = a.num_entries;

#pragma unroll
  for (int s = 0; s < kBlockSteps; ++s) {
    if (s >= steps) break;
    if (expert[s] >= 0)
      place_entry(a, first + s * kWarpSize, counts[warp * n + expert[s]] + rank[s]);
  }
}

// ------------------------------------------------------- many entries: count, sum, place by tiles

// One block a tile: counts[tile, e]. Reads the ids once; integers, so the order of the atomics is
// free.
__global__ void __launch_bounds__(kBlockThreads)
    moe_count_kernel(const Entries a, int32_t* counts, int tile_size, int num_tiles) {
  ERNIE_DYNAMIC_SHARED(int, seen);  // [num_experts]
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    for (int e = threadIdx.x; e < a.num_experts; e += kBlockThreads) seen[e] = 0;
    __syncthreads();
    const int begin = tile * tile_size;
    const int size = a.num_entries - begin < tile_size ? a.num_entries - begin : tile_size;
    for (int i = threadIdx.x; i < size; i += kBlockThreads)
      atomicAdd(&seen[expert_of(a, begin + i)], 1);
    __syncthreads();
    for (int e = threadIdx.x; e < a.num_experts; e += kBlockThreads)
      counts[int64_t{tile} * a.num_experts + e] = seen[e];  // which it alone clears for the next
  }
}

constexpr int kSumThreads = 1024;

// One block for all: counts[tile, e] becomes the place of the tile's first entry of e. `width`
// threads, a power of two, stand beside each other for as many experts, and the block's others
// behind them for later stretches of tiles. Reads the counts twice, writes them once: at 64 experts
// a quarter of the bytes of the ids.
__global__ void __launch_bounds__(kSumThreads)
    moe_sum_kernel(const Entries a, int32_t* counts, int num_tiles, int width) {
  ERNIE_SHARED(int, sums, [kSumThreads]);  // [stretches][width]
  ERNIE_SHARED(int, partial, [kSumThreads / kWarpSize]);
  const int x = static_cast<int>(threadIdx.x) % width, y = static_cast<int>(threadIdx.x) / width;
  const int stretches = kSumThreads / width;
  const int stretch = (num_tiles + stretches - 1) / stretches;
  const int begin = y * stretch;
  const int end = begin + stretch < num_tiles ? begin + stretch : num_tiles;
  int earlier = 0;  // entries of all experts before this round's
  for (int base = 0; base < a.num_experts; base += width) {
    const int e = base + x;
    int32_t* const column = counts + e;
    int own = 0;
    if (e < a.num_experts) {
#pragma unroll 8
      for (int tile = begin; tile < end; ++tile) own += column[int64_t{tile} * a.num_experts];
    }
    sums[threadIdx.x] = own;
    __syncthreads();
    int before = 0, of_expert = 0;  // entries of e in stretches before this one, and in all
    for (int other = 0; other < stretches; ++other) {
      if (other < y) before += sums[other * width + x];
      of_expert += sums[other * width + x];
    }
    int total;
    const int below = sum_before<kSumThreads>(y == 0 ? of_expert : 0, partial, &total);
    if (y == 0) {
      sums[x] = below;  // read by others as sums before the barrier of sum_before only
      if (e < a.num_experts) a.expert_offsets[e] = earlier + below;
    }
    __syncthreads();
    int place = earlier + sums[x] + before;
    earlier += total;
    if (e < a.num_experts) {
#pragma unroll 8
      for (int tile = begin; tile < end; ++tile) {
        const int count = column[int64_t{tile} * a.num_experts];
        column[int64_t{tile} * a.num_experts] = place;
        place += count;
      }
    }
    // No barrier here: there is a next round only where a thread has `sums` for itself, at 1024
    // experts a round, and `partial` is written again only after that round's own.
  }
  if (threadIdx.x == 0) a.expert_offsets[a.num_experts] = a.num_entries;
}

// One warp, which is a block, a tile: walks through it in order. Bound by latency, which some
// thousands of warps hide.
__global__ void __launch_bounds__(kWarpSize)
    moe_place_kernel(const Entries a, const int32_t* places, int tile_size, int num_tiles) {
  ERNIE_DYNAMIC_SHARED(int, next);  // [num_experts]
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    for (int e = threadIdx.x; e < a.num_experts; e += kWarpSize)
      next[e] = places[int64_t{tile} * a.num_experts + e];
    __syncwarp();
    const int begin = tile * tile_size;
    const int size = a.num_entries - begin < tile_size ? a.num_entries - begin : tile_size;
    for (int step = 0; step < size; step += kWarpSize) {
      const int i = step + static_cast<int>(threadIdx.x);
      const int expert = i < size ? expert_of(a, begin + i) : -1;
      const int place = rank_in_warp(expert, next);
      if (expert >= 0) place_entry(a, begin + i, place);
    }
  }
}

}  // namespace

// ------------------------------------------------------------------------------------- launcher

void moe_sort(const MoeSortArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const Entries entries = {.expert_offsets = a.expert_offsets.ptr<int64_t>(),
                           .inverse = a.inverse.ptr<int32_t>(),
                           .source_rows = a.source_rows ? a.source_rows->ptr<int32_t>() : nullptr,
                           .ids = a.topk_ids.ptr<int32_t>(),
                           .num_entries = static_cast<int>(a.topk_ids.numel()),
                           .top_k = static_cast<int>(a.topk_ids.size(1)),
                           .num_experts = static_cast<int>(a.num_experts)};
  const cudaStream_t queue = stream_of(stream);
  const size_t smem = a.num_experts * sizeof(int);
  if (moe_sorts_in_one_block(entries.num_entries, a.num_experts)) {
    launch(moe_sort_block_kernel,
           {.grid = 1, .block = kBlockThreads, .smem = kBlockWarps * smem, .stream = queue},
           entries);
    return;
  }
  const int64_t tile_size = moe_sort_tile(a.num_experts);
  const int num_tiles = static_cast<int>(ceil_div(entries.num_entries, tile_size));
  const unsigned grid = static_cast<unsigned>(num_tiles);
  int32_t* counts = a.workspace.ptr<int32_t>();
  int width = kWarpSize;
  while (width < entries.num_experts && width < kSumThreads) width *= 2;
  if (num_tiles > 0)
    launch(moe_count_kernel, {.grid = grid, .block = kBlockThreads, .smem = smem, .stream = queue},
           entries, counts, static_cast<int>(tile_size), num_tiles);
  launch(moe_sum_kernel, {.grid = 1, .block = kSumThreads, .stream = queue}, entries, counts,
         num_tiles, width);
  if (num_tiles > 0)
    launch(moe_place_kernel, {.grid = grid, .block = kWarpSize, .smem = smem, .stream = queue},
           entries, counts, static_cast<int>(tile_size), num_tiles);
}

int64_t moe_sort_workspace_size(int64_t num_entries, int64_t num_experts) {
  if (moe_sorts_in_one_block(num_entries, num_experts)) return 0;
  const int64_t num_tiles = ceil_div(num_entries, moe_sort_tile(num_experts));
  return num_tiles * num_experts * static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace ernie::cuda
