// The kernel that rounds a weight to int8 or 4 bits.
#pragma once

#include "cuda/common.cuh"
#include "cuda/nibbles.cuh"
#include "cuda/vector.cuh"
#include "ops/quantize_core.h"

namespace ernie::cuda {

template <class W>
constexpr float kLargest = std::is_same_v<W, Nibbles> ? 7.f : 127.f;

constexpr int kQuantizeThreads = 256, kQuantizeRows = kQuantizeThreads / kWarpSize;

// Byte j of a row of `columns` weights, whose largest magnitude is max_abs.
template <class W, class T>
__device__ __forceinline__ uint8_t rounded_byte(const T* row, int64_t j, int64_t columns,
                                                float max_abs) {
  const auto value = [&](int64_t k) {
    return static_cast<uint32_t>(rounded_weight(to_float(row[k]), max_abs, kLargest<W>));
  };
  if constexpr (std::is_same_v<W, Nibbles>) {
    const uint32_t high = 2 * j + 1 < columns ? value(2 * j + 1) : 0;
    return static_cast<uint8_t>((value(2 * j) & 15) | high << 4);
  } else {
    return static_cast<uint8_t>(value(j));
  }
}

// A warp a row, in two passes: its largest magnitude, and its bytes. Memory-bound: reads a row from
// memory once, and again from L1 or L2.
template <class W, class T>
__global__ void __launch_bounds__(kQuantizeThreads)
    wint_quantize_kernel(uint8_t* out, float* scale, const T* weight, int64_t stride, int64_t rows,
                         int64_t columns) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t bytes = elements_of<W>(columns), step = int64_t{gridDim.x} * kQuantizeRows;
  for (int64_t r = int64_t{blockIdx.x} * kQuantizeRows + warp; r < rows; r += step) {
    const T* row = weight + r * stride;
    uint32_t bits = 0;
#pragma unroll 4
    for (int64_t k = lane; k < columns; k += kWarpSize)
      bits = max(bits, magnitude_bits(to_float(row[k])));
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, offset));

    const bool usable = bits != 0 && bits < kInfinityBits;
    const float max_abs = __uint_as_float(bits);
#pragma unroll 4
    for (int64_t j = lane; j < bytes; j += kWarpSize)
      out[r * bytes + j] = usable ? rounded_byte<W>(row, j, columns, max_abs) : uint8_t{0};
    if (lane == 0) scale[r] = round_to<T>(usable ? max_abs / kLargest<W> : bits == 0 ? 0.f : NAN);
  }
}

// ------------------------------------------------------------------------------------- launcher

template <class W, class T, class Args>
void launch_wint_quantize_t(const Args& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t rows = a.weight.size(0);
  launch(wint_quantize_kernel<W, T>,
         {.grid = grid_of_rows(ceil_div(rows, kQuantizeRows)),
          .block = kQuantizeThreads,
          .stream = stream_of(stream)},
         a.out.template ptr<uint8_t>(), a.scale.template ptr<float>(), a.weight.template ptr<T>(),
         a.weight.step(0), rows, a.weight.size(1));
}

template <class W, class Args>
void launch_wint_quantize(const Args& a, const Stream& stream) {
  a.weight.dtype == DType::kBF16 ? launch_wint_quantize_t<W, bf16>(a, stream)
                                 : launch_wint_quantize_t<W, float>(a, stream);
}

}  // namespace ernie::cuda
