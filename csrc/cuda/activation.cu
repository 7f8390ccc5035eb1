#include "core/checked.h"
#include "cuda/activation_functions.cuh"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/activation.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResidentBlocks = 4;  // 1024 threads a multiprocessor cover the latency of memory

template <bool kWide, class T>
__device__ __forceinline__ void gate(T* out, const T* x, const T* up, int left) {
  Vec<T> g = load_vec<kWide>(x, left);
  const Vec<T> u = load_vec<kWide>(up, left);
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) set(g, j, silu(get(g, j)) * get(u, j));
  store_vec<kWide>(out, g, left);
}

template <Activation kActivation, bool kWide, class T>
__device__ __forceinline__ void activate_piece(T* out, const T* x, int left) {
  Vec<T> v = load_vec<kWide>(x, left);
#pragma unroll
  for (int j = 0; j < Vec<T>::kSize; ++j) set(v, j, activate(kActivation, get(v, j)));
  store_vec<kWide>(out, v, left);
}

// Calls piece(token, column) for all pieces of out. Blocks x walk the tokens, y the columns; a
// thread owns 16 bytes of out.
template <class T, class F>
__device__ __forceinline__ void for_each_piece(int64_t num_tokens, int64_t size, const F& piece) {
  constexpr int kSize = Vec<T>::kSize;
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kSize;
  const int64_t step = int64_t{gridDim.y} * kThreads * kSize;
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x)
    for (int64_t i = first; i < size; i += step) piece(t, i);
}

// Memory-bound: reads x once, writes out once. expf and the division differ from the CPU's by an
// ulp or two: the last bit of out may differ between the backends.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    silu_and_mul_kernel(T* out, const T* x, int64_t out_stride, int64_t x_stride,
                        int64_t num_tokens, int64_t intermediate_size) {
  for_each_piece<T>(num_tokens, intermediate_size, [&](int64_t t, int64_t i) {
    T* o = out + t * out_stride + i;
    const T* g = x + t * x_stride + i;
    const T* u = g + intermediate_size;
    const int left = left_of(intermediate_size, i);
    if (left >= Vec<T>::kSize && aligned16(o, g, u))
      gate<true>(o, g, u, left);
    else
      gate<false>(o, g, u, left);
  });
}

// As above; out may be x.
template <Activation kActivation, class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    activation_kernel(T* out, const T* x, int64_t out_stride, int64_t x_stride, int64_t num_tokens,
                      int64_t size) {
  for_each_piece<T>(num_tokens, size, [&](int64_t t, int64_t i) {
    T* o = out + t * out_stride + i;
    const T* from = x + t * x_stride + i;
    const int left = left_of(size, i);
    if (left >= Vec<T>::kSize && aligned16(o, from))
      activate_piece<kActivation, true>(o, from, left);
    else
      activate_piece<kActivation, false>(o, from, left);
  });
}

// ------------------------------------------------------------------------------------- launcher

template <class T, class Args, class Kernel>
void launch_pieces(const Args& a, Kernel* kernel, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_tokens = a.out.size(0), size = a.out.size(1);
  launch(kernel,
         {.grid = grid_of_items(num_tokens, ceil_div(size, Vec<T>::kSize), kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         a.out.template ptr<T>(), a.x.template ptr<T>(), a.out.step(0), a.x.step(0), num_tokens,
         size);
}

template <Activation kActivation>
void launch_activation(const ActivationArgs& a, const Stream& stream) {
  if (a.x.dtype == DType::kBF16)
    launch_pieces<bf16>(a, activation_kernel<kActivation, bf16>, stream);
  else
    launch_pieces<float>(a, activation_kernel<kActivation, float>, stream);
}

}  // namespace

void silu_and_mul(const SiluAndMulArgs& a, const Stream& stream) {
  if (a.x.dtype == DType::kBF16)
    launch_pieces<bf16>(a, silu_and_mul_kernel<bf16>, stream);
  else
    launch_pieces<float>(a, silu_and_mul_kernel<float>, stream);
}

void gelu(const ActivationArgs& a, const Stream& stream) {
  launch_activation<Activation::kGelu>(a, stream);
}

void quick_gelu(const ActivationArgs& a, const Stream& stream) {
  launch_activation<Activation::kQuickGelu>(a, stream);
}

}  // namespace ernie::cuda
