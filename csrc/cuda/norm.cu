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
  int64_t out_stride, residual_stride, x_stride;  // elements
  int64_t num_tokens, hidden_size;
  float eps;
};

template <class T>
__device__ __forceinline__ float add_squares(const Vec<T>& a, float sum) {
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) {
    const float f = get(a, j);
    sum = fmaf(f, f, sum);
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

// One row by kRowThreads threads, in two passes over what the norm is taken of.
template <int kRowThreads, bool kWide, bool kAdd, class T>
__device__ __forceinline__ void norm_row(const NormRows<T>& a, T* out, T* residual, const T* x) {
  constexpr int kSize = Vec<T>::kSize;
  const int64_t n = a.hidden_size;
  const int64_t first = threadIdx.x % kRowThreads * kSize, step = kRowThreads * kSize;

  Vec<T> held[kHeld] = {};
#pragma unroll
  for (int p = 0; p < kHeld; ++p)
    if (const int64_t i = first + p * step; i < n) held[p] = load_vec<kWide>(x + i, left_of(n, i));
  float sum_sq = 0.f;
#pragma unroll
  for (int p = 0; p < kHeld; ++p) {
    const int64_t i = first + p * step;
    if (kAdd && i < n) held[p] = add_into<kWide>(residual + i, held[p], left_of(n, i));
    sum_sq = add_squares(held[p], sum_sq);
  }
  for (int64_t i = first + kHeld * step; i < n; i += step) {
    Vec<T> v = load_vec<kWide>(x + i, left_of(n, i));
    if (kAdd) v = add_into<kWide>(residual + i, v, left_of(n, i));
    sum_sq = add_squares(v, sum_sq);
  }

  const float mean = row_sum<kRowThreads>(sum_sq) / static_cast<float>(n);
  const float scale = 1.f / sqrtf(mean + a.eps);

  const auto finish = [&](Vec<T> v, int64_t i) {
    const Vec<T> w = load_vec<kWide>(a.weight + i, left_of(n, i));
#pragma unroll
    for (int j = 0; j < kSize; ++j)  // rounded to T before the weight multiplies, then again
      set(v, j, round_to<T>(get(v, j) * scale) * get(w, j));
    store_vec<kWide>(out + i, v, left_of(n, i));
  };
#pragma unroll
  for (int p = 0; p < kHeld; ++p)
    if (const int64_t i = first + p * step; i < n) finish(held[p], i);
  const T* again = kAdd ? residual : x;  // each thread reads back what it alone has written
  for (int64_t i = first + kHeld * step; i < n; i += step)
    finish(load_vec<kWide>(again + i, left_of(n, i)), i);
}

// One warp or one block per row, 16 bytes a thread and step. Memory-bound: reads x (and the
// residual) once, writes out (and the residual) once; the weight stays in L2. All loads of a row
// are in flight before the first is used. out may be x, so neither is __restrict__.
template <int kRowThreads, bool kAdd, class T>
__global__ void __launch_bounds__(block_of(kRowThreads), kResidentThreads / block_of(kRowThreads))
    rms_norm_kernel(const NormRows<T> a) {
  constexpr int kRowsPerBlock = block_of(kRowThreads) / kRowThreads;
  const int64_t first = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kRowThreads;
  for (int64_t t = first; t < a.num_tokens; t += int64_t{gridDim.x} * kRowsPerBlock) {
    T* out = a.out + t * a.out_stride;
    const T* x = a.x + t * a.x_stride;
    T* residual = kAdd ? a.residual + t * a.residual_stride : nullptr;
    if (a.hidden_size % Vec<T>::kSize == 0 && aligned16(out, x, a.weight, residual))
      norm_row<kRowThreads, true, kAdd>(a, out, residual, x);
    else
      norm_row<kRowThreads, false, kAdd>(a, out, residual, x);
    if constexpr (kRowsPerBlock == 1) __syncthreads();  // before the next row's block_sum
  }
}

// ------------------------------------------------------------------------------------- launcher

template <int kRowThreads, bool kAdd, class T>
void launch_rows(const NormRows<T>& rows, const Stream& stream) {
  constexpr int kBlock = block_of(kRowThreads);
  launch(rms_norm_kernel<kRowThreads, kAdd, T>,
         {.grid = grid_of_rows(ceil_div(rows.num_tokens, kBlock / kRowThreads)),
          .block = kBlock,
          .stream = stream_of(stream)},
         rows);
}

template <bool kAdd, class T>
void launch_norm(const NormRows<T>& rows, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  constexpr int64_t kHeldPerThread = kHeld * Vec<T>::kSize;
  if (rows.hidden_size <= kWarpRow * kHeldPerThread)
    launch_rows<kWarpRow, kAdd>(rows, stream);
  else if (rows.hidden_size <= kMiddleRow * kHeldPerThread)
    launch_rows<kMiddleRow, kAdd>(rows, stream);
  else
    launch_rows<kWideRow, kAdd>(rows, stream);
}

template <class T>
void rms_norm_t(const RmsNormArgs& a, const Stream& stream) {
  launch_norm<false, T>({.out = a.out.ptr<T>(),
                         .residual = nullptr,
                         .x = a.x.ptr<T>(),
                         .weight = a.weight.ptr<T>(),
                         .out_stride = a.out.step(0),
                         .residual_stride = 0,
                         .x_stride = a.x.step(0),
                         .num_tokens = a.x.size(0),
                         .hidden_size = a.x.size(1),
                         .eps = a.eps},
                        stream);
}

template <class T>
void add_rms_norm_t(const AddRmsNormArgs& a, const Stream& stream) {
  launch_norm<true, T>({.out = a.out.ptr<T>(),
                        .residual = a.residual.ptr<T>(),
                        .x = a.x.ptr<T>(),
                        .weight = a.weight.ptr<T>(),
                        .out_stride = a.out.step(0),
                        .residual_stride = a.residual.step(0),
                        .x_stride = a.x.step(0),
                        .num_tokens = a.x.size(0),
                        .hidden_size = a.x.size(1),
                        .eps = a.eps},
                       stream);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, const Stream& stream) {
  a.x.dtype == DType::kBF16 ? rms_norm_t<bf16>(a, stream) : rms_norm_t<float>(a, stream);
}

void add_rms_norm(const AddRmsNormArgs& a, const Stream& stream) {
  a.x.dtype == DType::kBF16 ? add_rms_norm_t<bf16>(a, stream) : add_rms_norm_t<float>(a, stream);
}

}  // namespace ernie::cuda
