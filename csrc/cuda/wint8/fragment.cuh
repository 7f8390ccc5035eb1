// Quantized weights as operands of bfloat16 products, and the k order that all kernels share.
//
// Lane c of a quad holds 16 bytes of a weight's row, one load, and of a row of x the same k as
// chunks of 8. The product sums over k in any order as long as both operands agree, so 16
// consecutive k of a lane are four products: of int8 word j of the weight, widened, and words 2j
// and 2j + 1 of x serve product j, as they lie. The weight is the product's first operand: 16
// features by 8 tokens waste least when tokens are few.
#pragma once

#include "cuda/gemm/fragment.cuh"
#include "cuda/gemm/output.cuh"
#include "cuda/wint8/config.h"

namespace ernie::cuda {

constexpr float kWidenedUnit = 64;

// Elements k .. k + 15 of `row`; those from `end` on are zero. An aligned row starts at a multiple
// of 16 bytes and `end` is a multiple of 16. What is read is read once.
template <bool kAligned>
__device__ __forceinline__ uint4 load_bytes(const int8_t* row, int k, int end) {
  if constexpr (kAligned) {
    return k < end ? ld_global_nc_l1_no_allocate_16(row + k) : make_uint4(0, 0, 0, 0);
  } else {
    uint32_t word[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (k + i < end)
        word[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(row[k + i])) << 8 * (i % 4);
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// Two pairs of bfloat16, exactly the four weights over kWidenedUnit, by five instructions.
//
// Zeros above a byte u make the bfloat16 u * 2^-133: below 128 it is subnormal, and from there on
// the lowest normal numbers have the same distance. With u = weight + 128, which only flips the
// byte's highest bit, 2^127 * (u * 2^-133) - 2 = weight / 64. No other split of eight bits is this
// short: they do not fit the seven of a mantissa.
__device__ __forceinline__ uint2 widen(uint32_t weights) {
  constexpr uint32_t kTwoTo127 = 0x7f007f00, kMinusTwo = 0xc000c000;
  const uint32_t raised = weights ^ 0x80808080u;
  return make_uint2(fma_rn_bf16x2(prmt(raised, 0, 0x4140), kTwoTo127, kMinusTwo),
                    fma_rn_bf16x2(prmt(raised, 0, 0x4342), kTwoTo127, kMinusTwo));
}

// Terms for sums of products with widened weights.
template <class Weight>
__device__ __forceinline__ FeatureTerms widened_terms_of(const GemmOperands& p, int feature) {
  FeatureTerms terms = terms_of<typename Weight::Element>(p, feature);
  terms.scale *= Weight::kUnit;
  return terms;
}

// What kernels ask of a weight: k of 16 bytes, one over the factor of what `chunk` gives, bytes of
// a row (and of k of it), 16 bytes of it as they lie, and 8 k of those as pairs of bfloat16.
struct Wint8Weight {
  using Element = int8_t;
  static constexpr DType kDtype = DType::kI8;
  static constexpr int kLoadK = 16;
  static constexpr float kUnit = kWidenedUnit;
  static ERNIE_HOST_DEVICE constexpr int64_t row_bytes(int k) { return k; }

  template <bool kAligned>
  static __device__ __forceinline__ uint4 load(const char* row, int k, int end) {
    return load_bytes<kAligned>(reinterpret_cast<const int8_t*>(row), k, end);
  }
  static __device__ __forceinline__ uint4 chunk(const uint4& bytes, int i) {
    const uint2 low = widen(i == 0 ? bytes.x : bytes.z), high = widen(i == 0 ? bytes.y : bytes.w);
    return make_uint4(low.x, low.y, high.x, high.y);
  }
};

// 16 k of one row.
struct Wide {
  uint4 low, high;
};

// Those of index i of a lane's.
template <class Weight>
__device__ __forceinline__ Wide widen(const uint4& bytes, int i) {
  return {Weight::chunk(bytes, 2 * i), Weight::chunk(bytes, 2 * i + 1)};
}

// acc += weight * x^T over a chunk of each lane: 16 rows of the weight (low: row g, high: g + 8,
// where g is the lane's quad) by 8 rows of x (row g).
__device__ __forceinline__ void multiply_chunk(float (&acc)[4], const uint4& low, const uint4& high,
                                               const uint4& x) {
  mma_m16n8k16_bf16(acc, {low.x, high.x, low.y, high.y}, x.x, x.y);
  mma_m16n8k16_bf16(acc, {low.z, high.z, low.w, high.w}, x.z, x.w);
}

// The same over 16 k of each lane.
__device__ __forceinline__ void multiply_wide(float (&acc)[4], const Wide& low, const Wide& high,
                                              const uint4& x_low, const uint4& x_high) {
  multiply_chunk(acc, low.low, high.low, x_low);
  multiply_chunk(acc, low.high, high.high, x_high);
}

}  // namespace ernie::cuda
