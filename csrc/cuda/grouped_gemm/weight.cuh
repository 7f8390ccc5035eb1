// An expert's weight as the first operand of bfloat16 products, by its dtype.
//
// The product sums over k in any order as long as both operands agree. Lane c of a quad loads 16
// bytes of a weight's row, kLoadK consecutive k, and of a row of x the same k as chunks of 8. A
// chunk of the weight, made four pairs of bfloat16, and one of x then serve two m16n8k16 products
// as they lie: words 0 and 1 the first, 2 and 3 the second. The weight comes first because 16 of
// its rows by 8 rows of x waste least when an expert has few rows.
#pragma once

#include "cuda/gemm/fragment.cuh"
#include "cuda/grouped_gemm/kernels.h"
#include "cuda/wint8/fragment.cuh"

namespace ernie::cuda {

template <DType kDtype>
__device__ __forceinline__ int64_t row_bytes(int k) {
  if constexpr (kDtype == DType::kF32) return int64_t{4} * k;
  if constexpr (kDtype == DType::kBF16) return int64_t{2} * k;
  return kDtype == DType::kI8 ? k : (int64_t{k} + 1) / 2;
}

// Row `row` of expert `expert`; rows_of_weight of them an expert.
template <DType kDtype>
__device__ __forceinline__ const char* weight_data(const GroupedOperands& p, int expert,
                                                   int64_t rows_of_weight, int64_t row) {
  return static_cast<const char*>(p.weight) +
         (expert * rows_of_weight + row) * row_bytes<kDtype>(p.k);
}

// Elements k .. k + 31 of a row of nibbles, the even ones low; those from `end` on are zero, but
// for the last byte's second, which x makes zero. An aligned row starts at a multiple of 16 bytes
// and `end` is a multiple of 32.
template <bool kAligned>
__device__ __forceinline__ uint4 load_nibbles(const uint8_t* row, int k, int end) {
  if constexpr (kAligned) {
    return k < end ? ld_global_nc_l1_no_allocate_16(row + k / 2) : make_uint4(0, 0, 0, 0);
  } else {
    uint32_t word[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (k + 2 * i < end) word[i / 4] |= uint32_t{row[k / 2 + i]} << 8 * (i % 4);
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// The pair of bfloat16 that are byte kByte's two nibbles over kWidenedUnit, by three instructions:
// as `widen` of wint8/fragment.cuh, with u = weight + 8 in the lowest bits of one half and, four
// bits higher, of the other, whose factor is the smaller by 2^4.
template <int kByte>
__device__ __forceinline__ uint32_t widen_nibbles(uint32_t word) {
  constexpr uint32_t kTwoTo123And127 = 0x7d007f00, kMinusEighth = 0xbe00be00;
  const uint32_t doubled = prmt(word, 0, 0x4040 | kByte << 8 | kByte);
  return fma_rn_bf16x2((doubled & 0x00f0000fu) ^ 0x00800008u, kTwoTo123And127, kMinusEighth);
}

template <DType kDtype>
struct ExpertWeight;

template <>
struct ExpertWeight<DType::kBF16> {
  static constexpr int kLoadK = 8;
  static constexpr float kUnit = 1;  // one over the factor of what `chunk` gives

  template <bool kAligned>
  static __device__ __forceinline__ uint4 load(const char* row, int k, int end) {
    return load_chunk<kAligned, true>(reinterpret_cast<const bf16*>(row), k, end);
  }
  static __device__ __forceinline__ uint4 chunk(const uint4& bytes, int) { return bytes; }
};

template <>
struct ExpertWeight<DType::kI8> {
  static constexpr int kLoadK = 16;
  static constexpr float kUnit = kWidenedUnit;

  template <bool kAligned>
  static __device__ __forceinline__ uint4 load(const char* row, int k, int end) {
    return load_bytes<kAligned>(reinterpret_cast<const int8_t*>(row), k, end);
  }
  static __device__ __forceinline__ uint4 chunk(const uint4& bytes, int i) {
    const uint2 low = widen(i == 0 ? bytes.x : bytes.z), high = widen(i == 0 ? bytes.y : bytes.w);
    return make_uint4(low.x, low.y, high.x, high.y);
  }
};

template <>
struct ExpertWeight<DType::kU8> {
  static constexpr int kLoadK = 32;
  static constexpr float kUnit = kWidenedUnit;

  template <bool kAligned>
  static __device__ __forceinline__ uint4 load(const char* row, int k, int end) {
    return load_nibbles<kAligned>(reinterpret_cast<const uint8_t*>(row), k, end);
  }
  static __device__ __forceinline__ uint4 chunk(const uint4& bytes, int i) {
    const uint32_t word = i == 0 ? bytes.x : i == 1 ? bytes.y : i == 2 ? bytes.z : bytes.w;
    return make_uint4(widen_nibbles<0>(word), widen_nibbles<1>(word), widen_nibbles<2>(word),
                      widen_nibbles<3>(word));
  }
};

// acc += weight * x^T over a chunk of each lane: 16 rows of the weight (low: row g, high: g + 8,
// where g is the lane's quad) by 8 rows of x (row g).
__device__ __forceinline__ void multiply_chunk(float (&acc)[4], const uint4& low, const uint4& high,
                                               const uint4& x) {
  mma_m16n8k16_bf16(acc, {low.x, high.x, low.y, high.y}, x.x, x.y);
  mma_m16n8k16_bf16(acc, {low.z, high.z, low.w, high.w}, x.z, x.w);
}

}  // namespace ernie::cuda
