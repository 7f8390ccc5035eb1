// Rows of any dtype as float, for the kernels with float32 x.
#pragma once

#include "core/bf16.h"
#include "cuda/nibbles.cuh"

namespace ernie::cuda {

// Elements k .. k + kCount - 1 of `row` as float; those from `end` on are zero. An aligned row lets
// 16 bytes be read at once, and `end` is a multiple of kCount.
template <bool kAligned, int kCount, class T>
__device__ __forceinline__ void load_floats(float (&to)[kCount], const T* row, int k, int end) {
  constexpr int kVec = 16 / sizeof(T) < kCount ? 16 / sizeof(T) : kCount;
  struct alignas(kVec * sizeof(T)) Pack {
    T v[kVec];
  };
#pragma unroll
  for (int i = 0; i < kCount; i += kVec) {
    Pack pack = {};
    if constexpr (kAligned) {
      if (k < end) pack = *reinterpret_cast<const Pack*>(row + k + i);
    } else {
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        if (k + i + j < end) pack.v[j] = row[k + i + j];
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) to[i + j] = to_float(pack.v[j]);
  }
}

template <bool kAligned>
__device__ __forceinline__ void load_floats(float (&to)[8], const Nibbles* row, int k, int end) {
  load_nibble_values<kAligned>(to, row, k, end);
}

}  // namespace ernie::cuda
