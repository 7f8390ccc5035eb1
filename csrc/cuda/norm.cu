#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/norm.h"

namespace ernie::cuda {
namespace {

// Vecs of a row that a thread keeps in registers between the two passes. What lies beyond, in rows
// of more than 16 KiB, is read again, from L1 or L2.
constexpr int kHeld = 4;

// A row is owned by one warp or one block, as many threads as keep it in registers. That is chosen
// by the row's length alone: the order of its sum must not depend on the batch.
constexpr int kWarpRow = 32, kMiddleRow = 128, kWideRow = 256;

constexpr int block_of(int row_threads) { return row_threads < 128 ? 128 : row_threads; }
// So many threads a multiprocessor, of 64 bytes in flight each, cover the latency of memory.
constexpr int kResidentThreads = 640;

template <int kRowThreads>
__device__ __forceinline__ float row_sum(float v) {
  if constexpr (kRowThreads == kWarpSize)
    return warp_sum(v);
  else
    return block_sum<kRowThreads>(v);
}

template <class T>
struct NormRows {
  T* out;
  T* residual;  // null without the addition
  const T* x;
  const T* weight;
  const T* bias;  // null for rms_norm: the norm that has a bias is layer_norm
  int64_t out_stride, residual_stride, x_stride;  // elements
  int64_t num_tokens, hidden_size;
  float eps;
};

enum class Norm : uint8_t { kRms, kLayer };

template <class T>
__device__ __forceinline__ float add_values(const Vec<T>& a, float sum) {
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) sum += get(a, j);
  return sum;
}

// Of the differences to `mean`, as far as there are elements: a tail is padded with zeros.
template <class T>
__device__ __forceinline__ float add_squares(const Vec<T>& a, float mean, int left, float sum) {
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) {
    const float f = get(a, j) - mean;
    if (j < left) sum = fmaf(f, f, sum);
  }
  return sum;
}

// The element-wise sum, rounded to T and written to the residual.
template <bool kWide, class T>
__device__ __forceinline__ Vec<T> add_into(T* residual, const Vec<T>& x, int left) {
  Vec<T> r = load_vec<kWide>(residual, left);
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) set(r, j, get(r, j) + get(x, j));
  store_vec<kWide>(residual, r, left);
  return r;
}

// Calls f(vec, first element) for all Vecs of a thread: those that it holds, then what lies beyond
// them, from `rest`. kAdds: x is added to the residual on the way, and f gets the sum.
template <int kRowThreads, bool kWide, bool kAdds, class T, class F>
__device__ __forceinline__ void for_each_vec(Vec<T> (&held)[kHeld], const T* rest, T* residual,
                                             int64_t n, const F& f) {
  const int64_t first = threadIdx.x % kRowThreads * Vec<T>::kSize;
  const int64_t step = kRowThreads * Vec<T>::kSize;
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    const int64_t i = first + p * step;
    if (i >= n) break;
    if (kAdds) held[p] = add_into<kWide>(residual + i, held[p], left_of(n, i));
    f(held[p], i);
  }
  for (int64_t i = first + kHeld * step; i < n; i += step) {
    Vec<T> v = load_vec<kWide>(rest + i, left_of(n, i));
    if (kAdds) v = add_into<kWide>(residual + i, v, left_of(n, i));
    f(v, i);
  }
}

// One row by kRowThreads threads, in passes over what the norm is taken of: for layer_norm's mean,
// for the squares, for the result.
template <Norm kNorm, int kRowThreads, bool kWide, bool kAdd, class T>
__device__ __forceinline__ void norm_row(const NormRows<T>& a, T* out, T* residual, const T* x) {
  constexpr bool kIsLayer = kNorm == Norm::kLayer;
  constexpr int kSize = Vec<T>::kSize;
  const int64_t n = a.hidden_size;
  const int64_t first = threadIdx.x % kRowThreads * kSize, step = kRowThreads * kSize;
  const auto count = static_cast<float>(n);

  Vec<T> held[kHeld] = {};
#pragma unroll
  for (int p = 0; p < kHeld; ++p)
    if (const int64_t i = first + p * step; i < n) held[p] = load_vec<kWide>(x + i, left_of(n, i));
  const T* again = kAdd ? residual : x;  // each thread reads back what it alone has written

  float mean = 0.f;
  if constexpr (kIsLayer) {
    for_each_vec<kRowThreads, kWide, kAdd>(
        held, x, residual, n, [&](const Vec<T>& v, int64_t) { mean = add_values(v, mean); });
    mean = row_sum<kRowThreads>(mean) / count;
    if constexpr (kRowThreads != kWarpSize) __syncthreads();  // before the next block_sum
  }
  float sum_sq = 0.f;
  for_each_vec<kRowThreads, kWide, kAdd && !kIsLayer>(
      held, kIsLayer ? again : x, residual, n, [&](const Vec<T>& v, int64_t i) {
        sum_sq = add_squares(v, mean, kWide ? kSize : left_of(n, i), sum_sq);
      });
  const float scale = 1.f / sqrtf(row_sum<kRowThreads>(sum_sq) / count + a.eps);

  for_each_vec<kRowThreads, kWide, false>(held, again, residual, n, [&](Vec<T> v, int64_t i) {
    const int left = left_of(n, i);
    const Vec<T> w = load_vec<kWide>(a.weight + i, left);
    if constexpr (kIsLayer) {
      const Vec<T> b = load_vec<kWide>(a.bias + i, left);
#pragma unroll
      for (int j = 0; j < kSize; ++j)
        set(v, j, fmaf((get(v, j) - mean) * scale, get(w, j), get(b, j)));
    } else {
#pragma unroll
      for (int j = 0; j < kSize; ++j)  // rounded to T before the weight multiplies, then again
        set(v, j, round_to<T>(get(v, j) * scale) * get(w, j));
    }
    store_vec<kWide>(out + i, v, left);
  });
}

// One warp or one block per row, 16 bytes a thread and step. Memory-bound: reads x (and the
// residual) once, writes out (and the residual) once; weight and bias stay in L2. All loads of a
// row are in flight before the first is used. out may be x, so neither is __restrict__.
template <Norm kNorm, int kRowThreads, bool kAdd, class T>
__global__ void __launch_bounds__(block_of(kRowThreads), kResidentThreads / block_of(kRowThreads))
    norm_kernel(const NormRows<T> a) {
  constexpr int kRowsPerBlock = block_of(kRowThreads) / kRowThreads;
  const int64_t first = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kRowThreads;
  for (int64_t t = first; t < a.num_tokens; t += int64_t{gridDim.x} * kRowsPerBlock) {
    T* out = a.out + t * a.out_stride;
    const T* x = a.x + t * a.x_stride;
    T* residual = kAdd ? a.residual + t * a.residual_stride : nullptr;
    if (a.hidden_size % Vec<T>::kSize == 0 && aligned16(out, x, a.weight, a.bias, residual))
      norm_row<kNorm, kRowThreads, true, kAdd>(a, out, residual, x);
    else
      norm_row<kNorm, kRowThreads, false, kAdd>(a, out, residual, x);
    if constexpr (kRowsPerBlock == 1) __syncthreads();  // before the next row's block_sum
  }
}

// ------------------------------------------------------------------------------------- launcher

template <Norm kNorm, int kRowThreads, bool kAdd, class T>
void launch_rows(const NormRows<T>& rows, const Stream& stream) {
  constexpr int kBlock = block_of(kRowThreads);
  launch(norm_kernel<kNorm, kRowThreads, kAdd, T>,
         {.grid = grid_of_rows(ceil_div(rows.num_tokens, kBlock / kRowThreads)),
          .block = kBlock,
          .stream = stream_of(stream)},
         rows);
}

template <class T, class Args>
void norm_t(const Args& a, const Stream& stream) {
  constexpr bool kAdd = requires { a.residual; };
  constexpr Norm kNorm = requires { a.bias; } ? Norm::kLayer : Norm::kRms;
  NormRows<T> rows{.out = a.out.template ptr<T>(),
                   .residual = nullptr,
                   .x = a.x.template ptr<T>(),
                   .weight = a.weight.template ptr<T>(),
                   .bias = nullptr,
                   .out_stride = a.out.step(0),
                   .residual_stride = 0,
                   .x_stride = a.x.step(0),
                   .num_tokens = a.x.size(0),
                   .hidden_size = a.x.size(1),
                   .eps = a.eps};
  if constexpr (kAdd) {
    rows.residual = a.residual.template ptr<T>();
    rows.residual_stride = a.residual.step(0);
  }
  if constexpr (kNorm == Norm::kLayer) rows.bias = a.bias.template ptr<T>();

  const DeviceGuard guard(stream.device);
  constexpr int64_t kHeldPerThread = kHeld * Vec<T>::kSize;
  if (rows.hidden_size <= kWarpRow * kHeldPerThread)
    launch_rows<kNorm, kWarpRow, kAdd>(rows, stream);
  else if (rows.hidden_size <= kMiddleRow * kHeldPerThread)
    launch_rows<kNorm, kMiddleRow, kAdd>(rows, stream);
  else
    launch_rows<kNorm, kWideRow, kAdd>(rows, stream);
}

template <class Args>
void norm(const Args& a, const Stream& stream) {
  a.x.dtype == DType::kBF16 ? norm_t<bf16>(a, stream) : norm_t<float>(a, stream);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream& stream) { norm(a, stream); }
void add_rms_norm(const AddRmsNormArgs& a, const Stream& stream) { norm(a, stream); }
void layer_norm(const LayerNormArgs& a, const Stream& stream) { norm(a, stream); }
void add_layer_norm(const AddLayerNormArgs& a, const Stream& stream) { norm(a, stream); }

}  // namespace ernie::cuda
