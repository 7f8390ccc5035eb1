#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/nibbles.cuh"
#include "cuda/vector.cuh"
#include "ops/embedding.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;
// Columns: 16 bytes of int8 and bfloat16, 32 of float32, 8 of 4 bits.
template <class From>
constexpr int kPerThread = sizeof(From) == 1 ? 16 : 8;

// kPerThread columns of a row, of which `left` exist, as float; several Vecs.
template <bool kWide, class From>
__device__ __forceinline__ void load_values(float (&values)[kPerThread<From>], const From* row,
                                            int left) {
#pragma unroll
  for (int i = 0; i < kPerThread<From>; i += Vec<From>::kSize) {
    const Vec<From> v = load_vec<kWide>(row + i, left - i);
#pragma unroll
    for (int j = 0; j < Vec<From>::kSize; ++j) values[i + j] = get(v, j);
  }
}

template <bool kWide>
__device__ __forceinline__ void load_values(float (&values)[kPerThread<Nibbles>],
                                            const Nibbles* row, int left) {
#pragma unroll
  for (int i = 0; i < kPerThread<Nibbles>; i += 8) {
    float eight[8];
    load_nibble_values<kWide>(eight, row, i, left);
#pragma unroll
    for (int j = 0; j < 8; ++j) values[i + j] = eight[j];
  }
}

template <bool kWide, class From, class To>
__device__ __forceinline__ void convert(To* out, const From* row, int left, float scale) {
  float values[kPerThread<From>];
  load_values<kWide>(values, row, left);
  if constexpr (kIsQuantized<From>) {
#pragma unroll
    for (int i = 0; i < kPerThread<From>; ++i) values[i] *= scale;
  }
#pragma unroll
  for (int i = 0; i < kPerThread<From>; i += Vec<To>::kSize) {
    Vec<To> v = {};
#pragma unroll
    for (int j = 0; j < Vec<To>::kSize; ++j) set(v, j, values[i + j]);
    store_vec<kWide>(out + i, v, left - i);
  }
}

// Blocks x walk the tokens, y the columns; a thread owns kPerThread elements of out. Memory-bound:
// reads one row of the table a token, writes out once. Exact, or one rounding from float32 to
// bfloat16; of a quantized table, after the float32 product with the row's scale. An id outside the
// table, which the contract excludes, gives a row of NaN.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(To* out, const int64_t* input_ids, const From* weight, const float* scale,
                     int64_t out_stride, int64_t num_tokens, int64_t hidden_size,
                     int64_t vocab_size) {
  const int64_t first = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kPerThread<From>;
  const int64_t step = int64_t{gridDim.y} * kThreads * kPerThread<From>;
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    const int64_t id = input_ids[t];
    const bool known = id >= 0 && id < vocab_size;
    for (int64_t i = first; i < hidden_size; i += step) {
      To* o = out + t * out_stride + i;
      const int left = left_of(hidden_size, i);
      if (!known) {
        for (int j = 0; j < kPerThread<From> && j < left; ++j) o[j] = from_float<To>(NAN);
        continue;
      }
      const From* row = weight + id * elements_of<From>(hidden_size) + elements_of<From>(i);
      const float row_scale = kIsQuantized<From> ? scale[id] : 1.f;
      const bool row_aligned = std::is_same_v<From, Nibbles>
                                   ? reinterpret_cast<uintptr_t>(row) % sizeof(uint32_t) == 0
                                   : aligned16(row);
      if (left >= kPerThread<From> && aligned16(o) && row_aligned)
        convert<true>(o, row, left, row_scale);
      else
        convert<false>(o, row, left, row_scale);
    }
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class From, class To>
void embedding_t(const EmbeddingArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_tokens = a.out.size(0), hidden_size = a.out.size(1);
  launch(embedding_kernel<From, To>,
         {.grid = grid_of_items(num_tokens, ceil_div(hidden_size, kPerThread<From>), kThreads),
          .block = kThreads,
          .stream = stream_of(stream)},
         a.out.ptr<To>(), a.input_ids.ptr<int64_t>(), a.weight.ptr<From>(),
         a.scale ? a.scale->ptr<float>() : nullptr, a.out.step(0), num_tokens, hidden_size,
         a.vocab_size);
}

template <class From>
void embedding_from(const EmbeddingArgs& a, const Stream& stream) {
  a.out.dtype == DType::kBF16 ? embedding_t<From, bf16>(a, stream)
                              : embedding_t<From, float>(a, stream);
}

}  // namespace

void embedding(const EmbeddingArgs& a, const Stream& stream) {
  switch (a.weight.dtype) {
    case DType::kBF16:
      return embedding_from<bf16>(a, stream);
    case DType::kI8:
      return embedding_from<int8_t>(a, stream);
    case DType::kU8:
      return embedding_from<Nibbles>(a, stream);
    default:
      return embedding_from<float>(a, stream);
  }
}

}  // namespace ernie::cuda
