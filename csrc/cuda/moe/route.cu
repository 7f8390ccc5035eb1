#include "core/checked.h"
#include "cuda/common.cuh"
#include "ops/moe.h"
#include "ops/moe_core.h"
#include "ops/sampling_core.h"

namespace ernie::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kMoePartialSums == kWarpSize, "a lane for each partial sum, folded by warp_sum");

struct RouteRows {
  float* weights;
  int32_t* ids;
  uint8_t* flags;  // may be null
  const float* logits;
  const float* bias;
  const uint8_t* banks;  // null: there is one
  int64_t stride, num_tokens;
  int num_banks, num_experts, top_k;  // num_experts of a bank
  float norm_min;
};

// Of the bank that row t chooses among: its first expert.
__device__ __forceinline__ int first_expert(const RouteRows& a, int64_t t) {
  if (a.banks == nullptr) return 0;
  const int bank = a.banks[t];
  return (bank < a.num_banks ? bank : a.num_banks - 1) * a.num_experts;
}

// What is larger comes first; of equal scores the lower id, which the callers see to. Above 0 for
// every finite score.
__device__ __forceinline__ unsigned order_of(float score) {
  return static_cast<unsigned>(sample_key(score, 0) >> 32);
}

// The lanes, or threads, from `first` on in steps of `step` write the row that is not finite, of
// the bank whose first expert is `expert`.
__device__ __forceinline__ void mark_row(const RouteRows& a, int64_t t, int expert, int first,
                                         int step) {
  for (int j = first; j < a.top_k; j += step) {
    a.weights[t * a.top_k + j] = moe_nan();
    a.ids[t * a.top_k + j] = expert + j;
  }
  if (first == 0 && a.flags != nullptr) a.flags[t] = 1;
}

// --------------------------------------------------------------------- one warp a row, registers

constexpr int kWarpRows = 4;  // of a block

// Expert lane + 32 c is lane's c-th. For up to 32 kPerLane experts, of which up to 32 are chosen:
// lane j keeps the j-th. Bound by latency: some 40 steps and 15 a chosen expert, each a few dozen
// cycles.
template <int kPerLane>
__global__ void __launch_bounds__(kWarpRows* kWarpSize) moe_route_warp_kernel(const RouteRows a) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t first = int64_t{blockIdx.x} * kWarpRows + threadIdx.x / kWarpSize;
  for (int64_t t = first; t < a.num_tokens; t += int64_t{gridDim.x} * kWarpRows) {
    const int expert0 = first_expert(a, t);
    const float* logits = a.logits + t * a.stride + expert0;
    float p[kPerLane], bias[kPerLane];
    bool finite = true;
    float largest = -INFINITY;
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      const int e = lane + c * kWarpSize;
      p[c] = e < a.num_experts ? logits[e] : 0.f;
      bias[c] = e < a.num_experts ? a.bias[expert0 + e] : 0.f;
      finite &= moe_is_finite(p[c]) && moe_is_finite(bias[c]);
      if (e < a.num_experts) largest = fmaxf(largest, p[c]);
    }
    if (!__all_sync(kAllLanes, finite)) {
      mark_row(a, t, expert0, lane, kWarpSize);
      continue;
    }
    largest = warp_max(largest);

    float total = 0.f;
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      p[c] = lane + c * kWarpSize < a.num_experts ? moe_exp(p[c] - largest) : 0.f;
      total += p[c];
    }
    total = warp_sum(total);
    unsigned order[kPerLane];  // 0: none, or chosen already
#pragma unroll
    for (int c = 0; c < kPerLane; ++c) {
      p[c] = p[c] / total;
      order[c] = lane + c * kWarpSize < a.num_experts ? order_of(p[c] + bias[c]) : 0;
    }

    float kept_p = 0.f;
    int kept_id = 0;
    for (int j = 0; j < a.top_k; ++j) {
      unsigned best = 0, id = 0xffffffffu;
      float best_p = 0.f;
#pragma unroll
      for (int c = 0; c < kPerLane; ++c) {
        if (order[c] <= best) continue;
        best = order[c];
        best_p = p[c];
        id = lane + c * kWarpSize;
      }
      const unsigned highest = __reduce_max_sync(kAllLanes, best);
      const unsigned chosen = __reduce_min_sync(kAllLanes, best == highest ? id : 0xffffffffu);
      const float chosen_p = __shfl_sync(kAllLanes, best_p, static_cast<int>(chosen % kWarpSize));
      if (lane == j) {
        kept_p = chosen_p;
        kept_id = static_cast<int>(chosen);
      }
#pragma unroll
      for (int c = 0; c < kPerLane; ++c)
        if (chosen == static_cast<unsigned>(lane + c * kWarpSize)) order[c] = 0;
    }
    const float divisor = fmaxf(warp_sum(kept_p), a.norm_min);
    if (lane < a.top_k) {
      a.weights[t * a.top_k + lane] = kept_p / divisor;
      a.ids[t * a.top_k + lane] = expert0 + kept_id;
    }
  }
}

// ----------------------------------------------------------------- one block a row, shared memory

constexpr int kBlockThreads = 256;

// Keys in descending order, by Batcher's bitonic network; `size` is a power of two.
__device__ __forceinline__ void sort_descending(uint64_t* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += kBlockThreads) {
        const int low = 2 * pair - pair % distance, high = low + distance;
        const uint64_t x = keys[low], y = keys[high];
        const bool descending = (low & run) == 0;
        if ((x < y) == descending) {
          keys[low] = y;
          keys[high] = x;
        }
      }
      __syncthreads();
    }
  }
}

// For any number of experts, and of those chosen: all are sorted in shared memory. Bound by the
// barriers of the network, log2(E) (log2(E) + 1) / 2 of them.
__global__ void __launch_bounds__(kBlockThreads)
    moe_route_block_kernel(const RouteRows a, int padded_experts) {
  ERNIE_DYNAMIC_SHARED(uint64_t, keys);                              // [padded_experts]
  float* const p = reinterpret_cast<float*>(keys + padded_experts);  // [num_experts]
  float* const results = p + a.num_experts;                          // [2]: of warp 0, for all
  const int n = a.num_experts;

  for (int64_t t = blockIdx.x; t < a.num_tokens; t += gridDim.x) {
    const int expert0 = first_expert(a, t);
    const float* logits = a.logits + t * a.stride + expert0;
    const float* bias = a.bias + expert0;
    bool finite = true;
    for (int e = threadIdx.x; e < n; e += kBlockThreads) {
      p[e] = logits[e];
      finite &= moe_is_finite(p[e]) && moe_is_finite(bias[e]);
    }
    if (__syncthreads_and(finite) == 0) {
      mark_row(a, t, expert0, static_cast<int>(threadIdx.x), kBlockThreads);
      continue;  // no barrier: so far a thread has read its own part of p alone
    }
    if (threadIdx.x < kWarpSize) {
      float largest = -INFINITY;
      for (int e = threadIdx.x; e < n; e += kWarpSize) largest = fmaxf(largest, p[e]);
      largest = warp_max(largest);
      if (threadIdx.x == 0) results[0] = largest;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < n; e += kBlockThreads) p[e] = moe_exp(p[e] - results[0]);
    __syncthreads();
    if (threadIdx.x < kWarpSize) {
      float total = 0.f;
      for (int e = threadIdx.x; e < n; e += kWarpSize) total += p[e];
      total = warp_sum(total);
      if (threadIdx.x == 0) results[1] = total;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < padded_experts; e += kBlockThreads) {
      if (e < n) p[e] = p[e] / results[1];
      keys[e] = e < n ? sample_key(p[e] + bias[e], static_cast<uint32_t>(e)) : 0;
    }
    __syncthreads();
    sort_descending(keys, padded_experts);

    if (threadIdx.x < kWarpSize) {
      float sum = 0.f;
      for (int j = threadIdx.x; j < a.top_k; j += kWarpSize) sum += p[sample_key_id(keys[j])];
      sum = warp_sum(sum);
      if (threadIdx.x == 0) results[0] = fmaxf(sum, a.norm_min);
    }
    __syncthreads();
    for (int j = threadIdx.x; j < a.top_k; j += kBlockThreads) {
      const uint32_t id = sample_key_id(keys[j]);
      a.ids[t * a.top_k + j] = expert0 + static_cast<int32_t>(id);
      a.weights[t * a.top_k + j] = p[id] / results[0];
    }
    __syncthreads();  // before the next row overwrites all this
  }
}

// ------------------------------------------------------------------------------------- launcher

template <int kPerLane>
void launch_warps(const RouteRows& rows, const Stream& stream) {
  launch(moe_route_warp_kernel<kPerLane>,
         {.grid = grid_of_rows(ceil_div(rows.num_tokens, kWarpRows)),
          .block = kWarpRows * kWarpSize,
          .stream = stream_of(stream)},
         rows);
}

}  // namespace

void moe_route(const MoeRouteArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const RouteRows rows = {.weights = a.topk_weights.ptr<float>(),
                          .ids = a.topk_ids.ptr<int32_t>(),
                          .flags = a.flags ? a.flags->ptr<uint8_t>() : nullptr,
                          .logits = a.router_logits.ptr<float>(),
                          .bias = a.correction_bias.ptr<float>(),
                          .banks = a.banks ? a.banks->ptr<uint8_t>() : nullptr,
                          .stride = a.router_logits.step(0),
                          .num_tokens = a.router_logits.size(0),
                          .num_banks = static_cast<int>(a.num_banks),
                          .num_experts = static_cast<int>(a.router_logits.size(1) / a.num_banks),
                          .top_k = static_cast<int>(a.top_k),
                          .norm_min = a.norm_min};
  if (rows.top_k <= kWarpSize && rows.num_experts <= 2 * kWarpSize)
    return launch_warps<2>(rows, stream);
  if (rows.top_k <= kWarpSize && rows.num_experts <= 8 * kWarpSize)
    return launch_warps<8>(rows, stream);
  int padded = 1;
  while (padded < rows.num_experts) padded *= 2;
  const size_t smem = padded * sizeof(uint64_t) + (rows.num_experts + 2) * sizeof(float);
  launch(moe_route_block_kernel,
         {.grid = grid_of_rows(rows.num_tokens),
          .block = kBlockThreads,
          .smem = smem,
          .stream = stream_of(stream)},
         rows, padded);
}

}  // namespace ernie::cuda
