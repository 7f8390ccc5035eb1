// The arithmetic and the plan of the moe family that both backends share, bit for bit. Products and
// sums are rounded one by one: not every CPU tier has a fused multiply-add.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace ernie {

inline constexpr int64_t kMoeMaxExperts = 4096;

// Sums over experts are taken in this many partial sums, of the terms i, i + 32, i + 64, ... each,
// in ascending order; then 16 of them are added to the other 16, 8 to 8, and so on: what a warp
// does with shuffles.
inline constexpr int64_t kMoePartialSums = 32;

ERNIE_HOST_DEVICE static inline float moe_float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

ERNIE_HOST_DEVICE static inline uint32_t moe_bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits;
}

// The weight of every expert of a row that is not finite.
ERNIE_HOST_DEVICE static inline float moe_nan() { return moe_float_of(0x7fc00000u); }

ERNIE_HOST_DEVICE static inline bool moe_is_finite(float f) {
  return (moe_bits_of(f) & 0x7fffffffu) < 0x7f800000u;
}

// e^x for x <= 0, within 1.1 ulp; below the smallest normal number as accurate as denormals allow,
// and 0 from -104 on. Cody-Waite reduction x = n ln2 + r, |r| <= ln2 / 2, and a polynomial through
// the Chebyshev nodes of that range.
ERNIE_HOST_DEVICE static inline float moe_exp(float x) {
  // As integers: compilers make vectors of that. Of negative numbers the larger bits are the lower.
  const uint32_t bits = moe_bits_of(x), lowest = 0xc2d00000u;  // of -104
  const float bounded = moe_float_of(bits < lowest ? bits : lowest);
  const float kRound = 12582912.f;  // 1.5 * 2^23: what is added to it loses its fraction
  const float n = (bounded * 1.44269504088896341f + kRound) - kRound;
  const float r = (bounded - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  float p = 1.3926192586e-3f;
  p = p * r + 8.3631862556e-3f;
  p = p * r + 4.1666554563e-2f;
  p = p * r + 1.6666576946e-1f;
  p = p * r + 0.5f;
  p = (r * r) * p + r;
  p = p + 1.f;
  // 2^n in two halves, so that a denormal result is rounded once.
  const int32_t whole = static_cast<int32_t>(n), half = whole >> 1;
  const float low = moe_float_of(static_cast<uint32_t>(half + 127) << 23);
  const float high = moe_float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  return (p * low) * high;
}

// An id as an index: one out of range counts as the nearest expert. (The CPU refuses it before.)
ERNIE_HOST_DEVICE static inline int32_t moe_expert(int32_t id, int32_t num_experts) {
  return id < 0 ? 0 : id < num_experts ? id : num_experts - 1;
}

// ------------------------------------------------------------------------- plan of cuda's moe_sort

// Up to so many entries, of up to so many experts, are sorted by one block, without a workspace.
inline constexpr int64_t kMoeSortBlockEntries = 2048, kMoeSortBlockExperts = 512;

inline bool moe_sorts_in_one_block(int64_t num_entries, int64_t num_experts) {
  return num_entries <= kMoeSortBlockEntries && num_experts <= kMoeSortBlockExperts;
}

// Beyond that they are counted, and placed, in tiles of so many: a multiple of 32, and enough for
// the counts, one per tile and expert, to be fewer than the entries.
inline int64_t moe_sort_tile(int64_t num_experts) {
  const int64_t tile = (2 * num_experts + 31) / 32 * 32;
  return tile > 1024 ? tile : 1024;
}

}  // namespace ernie
