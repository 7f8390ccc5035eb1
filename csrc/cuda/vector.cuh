// Vec: 16 bytes of a row in registers, whatever the row's alignment and length.
//
// A kernel deals its elements to threads in whole Vecs and loads them by one instruction where the
// row allows, element by element where it does not. Which thread owns which element never changes
// with alignment, so neither do the bits of a sum.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/bf16.h"

namespace ernie::cuda {

template <class T>
struct Vec {
  static constexpr int kSize = 16 / sizeof(T);
  uint32_t word[4];
};

// The elements as float, and back, rounded to T. Loops over them are unrolled: an index known at
// compile time keeps all in registers.
__device__ __forceinline__ float get(const Vec<float>& v, int j) {
  return __uint_as_float(v.word[j]);
}
__device__ __forceinline__ float get(const Vec<bf16>& v, int j) {
  return __uint_as_float(j % 2 == 0 ? v.word[j / 2] << 16 : v.word[j / 2] & 0xffff0000u);
}
__device__ __forceinline__ float get(const Vec<int8_t>& v, int j) {
  return static_cast<int8_t>(v.word[j / 4] >> 8 * (j % 4));
}
__device__ __forceinline__ void set(Vec<float>& v, int j, float f) {
  v.word[j] = __float_as_uint(f);
}
__device__ __forceinline__ void set(Vec<bf16>& v, int j, float f) {
  const uint32_t bits = to_bf16(f).bits, word = v.word[j / 2];
  v.word[j / 2] = j % 2 == 0 ? (word & 0xffff0000u) | bits : (word & 0xffffu) | bits << 16;
}

__device__ __forceinline__ void set(Vec<int8_t>& v, int j, float f) {  // f: what an int8 holds
  const uint32_t byte = static_cast<uint8_t>(static_cast<int8_t>(f)), at = 8 * (j % 4);
  v.word[j / 4] = (v.word[j / 4] & ~(0xffu << at)) | byte << at;
}

template <class T>
__device__ __forceinline__ T from_float(float f) {
  if constexpr (std::is_same_v<T, float>)
    return f;
  else
    return to_bf16(f);
}

// f as a T keeps it.
template <class T>
__device__ __forceinline__ float round_to(float f) {
  return to_float(from_float<T>(f));
}

template <class... Pointers>
__device__ __forceinline__ bool aligned16(const Pointers*... p) {
  return ((reinterpret_cast<uintptr_t>(p) | ...) & 15) == 0;
}

// What is left of `count` elements from `first` on, as far as one thread's piece can hold it.
__device__ __forceinline__ int left_of(int64_t count, int64_t first) {
  return static_cast<int>(count - first < 16 ? count - first : 16);
}

// `left` elements remain from p on; the rest of the Vec is zero. kWide: p is 16-byte aligned and
// left >= kSize.
template <bool kWide, class T>
__device__ __forceinline__ Vec<T> load_vec(const T* p, int left) {
  Vec<T> v = {};
  if constexpr (kWide) {
    const uint4* const words = reinterpret_cast<const uint4*>(p);
    const uint4 w = *words;
    v.word[0] = w.x;
    v.word[1] = w.y;
    v.word[2] = w.z;
    v.word[3] = w.w;
  } else {
#pragma unroll
    for (int j = 0; j < Vec<T>::kSize; ++j)
      if (j < left) set(v, j, to_float(p[j]));
  }
  return v;
}

template <bool kWide, class T>
__device__ __forceinline__ void store_vec(T* p, const Vec<T>& v, int left) {
  if constexpr (kWide) {
    *reinterpret_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
  } else {
#pragma unroll
    for (int j = 0; j < Vec<T>::kSize; ++j)
      if (j < left) p[j] = from_float<T>(get(v, j));
  }
}

}  // namespace ernie::cuda
