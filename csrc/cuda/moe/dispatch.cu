#include "core/checked.h"
#include "cuda/common.cuh"
#include "ops/moe.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;

// Everything in units of Unit: an element, or 16 bytes where all rows allow.
template <class Unit>
struct GatherRows {
  Unit* out;
  const Unit* hidden_states;
  const int32_t* inverse;
  int64_t out_stride, stride;
  int64_t num_tokens, top_k, row;
};

// Blocks x walk the tokens, y the units of a row; a thread reads one and writes it top_k times.
// Memory-bound: reads hidden_states once, writes out once. The places are those of moe_sort, which
// are in range whatever the ids were.
template <class Unit>
__global__ void __launch_bounds__(kThreads) moe_gather_kernel(const GatherRows<Unit> a) {
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t t = blockIdx.x; t < a.num_tokens; t += gridDim.x) {
    const int32_t* places = a.inverse + t * a.top_k;
    for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < a.row; i += step) {
      const Unit unit = a.hidden_states[t * a.stride + i];
#pragma unroll 8
      for (int64_t j = 0; j < a.top_k; ++j) a.out[places[j] * a.out_stride + i] = unit;
    }
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class Unit>
void launch_gather(const MoeDispatchArgs& a, const Stream& stream) {
  const int64_t elements = sizeof(Unit) / size_of(a.hidden_states.dtype);  // of one unit
  const GatherRows<Unit> rows = {.out = a.permuted.ptr<Unit>(),
                                 .hidden_states = a.hidden_states.ptr<Unit>(),
                                 .inverse = a.sort.inverse.ptr<int32_t>(),
                                 .out_stride = a.permuted.step(0) / elements,
                                 .stride = a.hidden_states.step(0) / elements,
                                 .num_tokens = a.hidden_states.size(0),
                                 .top_k = a.sort.inverse.size(1),
                                 .row = a.hidden_states.size(1) / elements};
  launch(moe_gather_kernel<Unit>,
         {.grid = grid_of_items(rows.num_tokens, rows.row, kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         rows);
}

}  // namespace

void moe_dispatch(const MoeDispatchArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  cuda::moe_sort(a.sort, stream);
  if (a.permuted.numel() == 0) return;
  if (is_wide(a.permuted) && is_wide(a.hidden_states))
    launch_gather<uint4>(a, stream);
  else if (size_of(a.hidden_states.dtype) == 2)
    launch_gather<uint16_t>(a, stream);
  else
    launch_gather<uint32_t>(a, stream);
}

}  // namespace ernie::cuda
