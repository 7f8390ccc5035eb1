// Int8 weights as operands of bfloat16 products, and the k order that both kernels share.
//
// A step is 64 k. Lane c of a quad holds 16 consecutive k of a weight's row, one load of 16 bytes,
// and of a row of x two chunks of 8. The product sums over k in any order as long as both operands
// agree, so word j of the weight and words 2j and 2j + 1 of x serve product j of four, as they lie.
// The weight is the product's first operand: 16 features by 8 tokens waste least when tokens are
// few.
#pragma once

#include "cuda/gemm/fragment.cuh"
#include "cuda/gemm/kernels.h"
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
__device__ __forceinline__ FeatureTerms widened_terms_of(const GemmOperands& p, int feature) {
  FeatureTerms terms = terms_of<int8_t>(p, feature);
  terms.scale *= kWidenedUnit;
  return terms;
}

// One row's share of a step.
struct WideBytes {
  uint2 word[4];
};

__device__ __forceinline__ WideBytes widen(const uint4& bytes) {
  return {{widen(bytes.x), widen(bytes.y), widen(bytes.z), widen(bytes.w)}};
}

// acc += weight * x^T over one step: 16 features (rows g and g + 8, where g is the lane's quad) by
// 8 tokens (chunks of token g).
__device__ __forceinline__ void multiply_step(float (&acc)[4], const WideBytes& low,
                                              const WideBytes& high, const uint4& x_low,
                                              const uint4& x_high) {
  const uint32_t x[8] = {x_low.x,  x_low.y,  x_low.z,  x_low.w,
                         x_high.x, x_high.y, x_high.z, x_high.w};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    mma_m16n8k16_bf16(acc, {low.word[j].x, high.word[j].x, low.word[j].y, high.word[j].y}, x[2 * j],
                      x[2 * j + 1]);
}

}  // namespace ernie::cuda
