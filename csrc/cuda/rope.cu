#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/rope.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;

// ---------------------------------------------------------------------------------------- table

// Blocks x walk the tokens, y the pairs; a thread owns one pair. Bound by the double-precision
// power, cosine and sine; run once per step. Double precision, so that rounding to float32 gives
// what the CPU gives (unless a value lies within 2^-28 of the middle between two floats).
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(float* out, const int64_t* positions, int64_t num_tokens, RopeScheme scheme,
                      float theta) {
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < scheme.pairs; i += step) {
    const RopePair pair = rope_pair(scheme, i);
    const double exponent = -static_cast<double>(pair.step) / static_cast<double>(pair.steps);
    const float freq = static_cast<float>(pow(static_cast<double>(theta), exponent));
    for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
      const float angle = static_cast<float>(positions[pair.axis * num_tokens + t]) * freq;
      float* row = out + t * 2 * scheme.pairs;
      row[rope_cosine(scheme, i)] = static_cast<float>(cos(static_cast<double>(angle)));
      row[rope_sine(scheme, i)] = static_cast<float>(sin(static_cast<double>(angle)));
    }
  }
}

// ------------------------------------------------------------------------------------- rotation

template <class T>
struct Heads {
  T* data;
  int64_t token_stride, head_stride;  // elements
  int64_t num_heads;
};

template <bool kWide, class T>
__device__ __forceinline__ void rotate(T* x, const float* cos_sin, int left) {
  constexpr int kSize = Vec<T>::kSize;
  Vec<T> v = load_vec<kWide>(x, left);
  float table[kSize];
#pragma unroll
  for (int j = 0; j < kSize; j += Vec<float>::kSize) {
    const Vec<float> part = load_vec<kWide>(cos_sin + j, left - j);
#pragma unroll
    for (int k = 0; k < Vec<float>::kSize; ++k) table[j + k] = get(part, k);
  }
#pragma unroll
  for (int j = 0; j < kSize; j += 2) {
    const float even = get(v, j), odd = get(v, j + 1);
    const float c = table[j], s = table[j + 1];
    set(v, j, even * c - odd * s);
    set(v, j + 1, odd * c + even * s);
  }
  store_vec<kWide>(x, v, left);
}

// Vec i of one half of a head with that of the other, `half` elements further on.
template <bool kWide, class T>
__device__ __forceinline__ void rotate_halves(T* x, const float* cosines, int64_t half, int left) {
  constexpr int kSize = Vec<T>::kSize;
  const float* sines = cosines + half;
  Vec<T> first = load_vec<kWide>(x, left), second = load_vec<kWide>(x + half, left);
#pragma unroll
  for (int j = 0; j < kSize; j += Vec<float>::kSize) {
    const Vec<float> c = load_vec<kWide>(cosines + j, left - j);
    const Vec<float> s = load_vec<kWide>(sines + j, left - j);
#pragma unroll
    for (int k = 0; k < Vec<float>::kSize; ++k) {
      const float a = get(first, j + k), b = get(second, j + k);
      set(first, j + k, a * get(c, k) - b * get(s, k));
      set(second, j + k, b * get(c, k) + a * get(s, k));
    }
  }
  store_vec<kWide>(x, first, left);
  store_vec<kWide>(x + half, second, left);
}

enum class Pairing : uint8_t { kNeighbours, kHalves };

// Blocks x walk the tokens, y the 16-byte pieces of all their query and key heads, of a head's
// first half where halves are paired; a thread owns whole pairs. Memory-bound: reads and writes
// query and key once; a token's row of the table is read by all its heads, from L1. head_dim is
// even, so that no pair is torn.
template <Pairing kPairing, class T>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const Heads<T> query, const Heads<T> key, const float* __restrict__ table,
                int64_t num_tokens, int64_t head_dim) {
  constexpr int kSize = Vec<T>::kSize;
  const int64_t span = kPairing == Pairing::kHalves ? head_dim / 2 : head_dim;
  const int64_t pieces = (span + kSize - 1) / kSize;  // of one head
  const int64_t items = (query.num_heads + key.num_heads) * pieces;
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t item = int64_t{blockIdx.y} * kThreads + threadIdx.x; item < items; item += step) {
    const int64_t head = item / pieces, i = (item - head * pieces) * kSize;
    const bool is_query = head < query.num_heads;
    T* const first = is_query ? query.data + head * query.head_stride
                              : key.data + (head - query.num_heads) * key.head_stride;
    const int64_t token_stride = is_query ? query.token_stride : key.token_stride;
    const int left = left_of(span, i);
    for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
      T* x = first + t * token_stride + i;
      const float* angles = table + t * head_dim + i;
      if constexpr (kPairing == Pairing::kHalves) {
        if (left >= kSize && aligned16(x, x + span, angles, angles + span))
          rotate_halves<true>(x, angles, span, left);
        else
          rotate_halves<false>(x, angles, span, left);
      } else {
        if (left >= kSize && aligned16(x, angles))
          rotate<true>(x, angles, left);
        else
          rotate<false>(x, angles, left);
      }
    }
  }
}

// ------------------------------------------------------------------------------------- launchers

template <class T>
Heads<T> heads_of(const TensorView& x) {
  return {x.ptr<T>(), x.step(0), x.step(1), x.size(1)};
}

template <Pairing kPairing, class T>
void rotate_t(const RopeArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_tokens = a.query.size(0), head_dim = a.query.size(2);
  const int64_t span = kPairing == Pairing::kHalves ? head_dim / 2 : head_dim;
  const int64_t items = (a.query.size(1) + a.key.size(1)) * ceil_div(span, int64_t{Vec<T>::kSize});
  launch(rope_kernel<kPairing, T>,
         {.grid = grid_of_items(num_tokens, items, kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         heads_of<T>(a.query), heads_of<T>(a.key), a.table.ptr<float>(), num_tokens, head_dim);
}

template <Pairing kPairing>
void rotate_heads(const RopeArgs& a, const Stream& stream) {
  a.query.dtype == DType::kBF16 ? rotate_t<kPairing, bf16>(a, stream)
                                : rotate_t<kPairing, float>(a, stream);
}

}  // namespace

void rope_angles(const RopeAnglesArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_tokens = a.out.size(0);
  // A few hundred blocks fill any GPU; more tokens than that share a block and its frequencies.
  constexpr int64_t kBlocks = 1024;
  launch(rope_table_kernel,
         {.grid = grid_of_items(std::min(num_tokens, kBlocks), a.scheme.pairs, kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         a.out.ptr<float>(), a.positions.ptr<int64_t>(), num_tokens, a.scheme, a.theta);
}

void rope(const RopeArgs& a, const Stream& stream) {
  rotate_heads<Pairing::kNeighbours>(a, stream);
}

void rope_2d(const RopeArgs& a, const Stream& stream) { rotate_heads<Pairing::kHalves>(a, stream); }

}  // namespace ernie::cuda
