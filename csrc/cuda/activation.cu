#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/silu.cuh"
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

// Blocks x walk the tokens, y the columns; a thread owns 16 bytes of out. Memory-bound: reads x
// once, writes out once. expf is within 2 ulp, where the CPU's own is within 1.5: the last bit of
// out may differ between the backends.
template <class T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    silu_and_mul_kernel(T* out, const T* x, int64_t out_stride, int64_t x_stride,
                        int64_t num_tokens, int64_t intermediate_size) {
  constexpr int kSize = Vec<T>::kSize;
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kSize;
  const int64_t step = int64_t{gridDim.y} * kThreads * kSize;
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    for (int64_t i = first; i < intermediate_size; i += step) {
      T* o = out + t * out_stride + i;
      const T* g = x + t * x_stride + i;
      const T* u = g + intermediate_size;
      const int left = left_of(intermediate_size, i);
      if (left >= kSize && aligned16(o, g, u))
        gate<true>(o, g, u, left);
      else
        gate<false>(o, g, u, left);
    }
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class T>
void silu_and_mul_t(const SiluAndMulArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_tokens = a.out.size(0), intermediate_size = a.out.size(1);
  launch(silu_and_mul_kernel<T>,
         {.grid = grid_of_items(num_tokens, ceil_div(intermediate_size, Vec<T>::kSize), kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         a.out.ptr<T>(), a.x.ptr<T>(), a.out.step(0), a.x.step(0), num_tokens, intermediate_size);
}

}  // namespace

void silu_and_mul(const SiluAndMulArgs& a, const Stream& stream) {
  a.x.dtype == DType::kBF16 ? silu_and_mul_t<bf16>(a, stream) : silu_and_mul_t<float>(a, stream);
}

}  // namespace ernie::cuda
