#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/moe.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
struct CombineRows {
  T* out;
  const T* x;
  const T* shared;  // may be null
  const float* weights;
  const int32_t* inverse;
  int64_t out_stride, x_stride, shared_stride;
  int64_t num_tokens, top_k, hidden_size;
};

template <bool kWide, class T>
__device__ __forceinline__ void combine_vec(const CombineRows<T>& a, int64_t t, int64_t i) {
  constexpr int kSize = Vec<T>::kSize;
  const int left = left_of(a.hidden_size, i);
  const int64_t last = a.num_tokens * a.top_k - 1;
  float sum[kSize] = {};
#pragma unroll 4
  for (int64_t j = 0; j < a.top_k; ++j) {
    int64_t place = a.inverse[t * a.top_k + j];
    place = place < 0 ? 0 : place < last ? place : last;
    const float weight = a.weights[t * a.top_k + j];
    const Vec<T> v = load_vec<kWide>(a.x + place * a.x_stride + i, left);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum[e] = sum[e] + weight * get(v, e);
  }
  Vec<T> result = {};
  if (a.shared != nullptr) {
    const Vec<T> v = load_vec<kWide>(a.shared + t * a.shared_stride + i, left);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum[e] = sum[e] + get(v, e);
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) set(result, e, sum[e]);
  store_vec<kWide>(a.out + t * a.out_stride + i, result, left);
}

// Blocks x walk the tokens, y the columns; a thread owns 16 bytes of out. Memory-bound: reads x
// (and shared) once, writes out once; four rows are in flight a thread. out may be shared, so
// neither is __restrict__. A place out of range, which the contract excludes, is taken for the
// nearest.
template <bool kWide, class T>
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(const CombineRows<T> a) {
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * Vec<T>::kSize;
  const int64_t step = int64_t{gridDim.y} * kThreads * Vec<T>::kSize;
  for (int64_t t = blockIdx.x; t < a.num_tokens; t += gridDim.x)
    for (int64_t i = first; i < a.hidden_size; i += step) combine_vec<kWide>(a, t, i);
}

// ------------------------------------------------------------------------------------- launcher

template <class T>
void combine_t(const MoeCombineArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const CombineRows<T> rows = {.out = a.out.ptr<T>(),
                               .x = a.x.ptr<T>(),
                               .shared = a.shared ? a.shared->ptr<T>() : nullptr,
                               .weights = a.topk_weights.ptr<float>(),
                               .inverse = a.inverse.ptr<int32_t>(),
                               .out_stride = a.out.step(0),
                               .x_stride = a.x.step(0),
                               .shared_stride = a.shared ? a.shared->step(0) : 0,
                               .num_tokens = a.out.size(0),
                               .top_k = a.inverse.size(1),
                               .hidden_size = a.out.size(1)};
  const bool wide = is_wide(a.out) && is_wide(a.x) && (!a.shared || is_wide(*a.shared));
  launch(
      wide ? moe_combine_kernel<true, T> : moe_combine_kernel<false, T>,
      {.grid = grid_of_items(rows.num_tokens, ceil_div(rows.hidden_size, Vec<T>::kSize), kThreads),
       .block = kThreads,
       .stream = stream_of(stream)},
      rows);
}

}  // namespace

void moe_combine(const MoeCombineArgs& a, const Stream& stream) {
  a.x.dtype == DType::kBF16 ? combine_t<bf16>(a, stream) : combine_t<float>(a, stream);
}

}  // namespace ernie::cuda
