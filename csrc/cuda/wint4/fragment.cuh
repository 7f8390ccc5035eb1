// 4-bit weights as operands of bfloat16 products, as wint8/fragment.cuh has int8 ones, and as
// float.
#pragma once

#include "cuda/wint8/fragment.cuh"

namespace ernie::cuda {

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
// as `widen` of int8 weights, with u = weight + 8 in the lowest bits of one half and, four
// bits higher, of the other, whose factor is the smaller by 2^4.
template <int kByte>
__device__ __forceinline__ uint32_t widen_nibbles(uint32_t word) {
  constexpr uint32_t kTwoTo123And127 = 0x7d007f00, kMinusEighth = 0xbe00be00;
  const uint32_t doubled = prmt(word, 0, 0x4040 | kByte << 8 | kByte);
  return fma_rn_bf16x2((doubled & 0x00f0000fu) ^ 0x00800008u, kTwoTo123And127, kMinusEighth);
}

// As Wint8Weight.
struct Wint4Weight {
  using Element = Nibbles;
  static constexpr DType kDtype = DType::kU8;
  static constexpr int kLoadK = 32;
  static constexpr float kUnit = kWidenedUnit;
  static ERNIE_HOST_DEVICE constexpr int64_t row_bytes(int k) { return (int64_t{k} + 1) / 2; }

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

}  // namespace ernie::cuda
