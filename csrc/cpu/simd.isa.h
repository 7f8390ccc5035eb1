// F32: a register of floats, as wide as the tier this file is compiled for.
// Only *.isa.cpp may include it. Everything is in an unnamed namespace on purpose: two tiers must
// never share a symbol, or the linker may keep the AVX-512 copy for a machine without AVX-512.
#pragma once

#if !defined(ERNIE_ISA)
#error "simd.isa.h is for *.isa.cpp files only"
#endif

#include <math.h>

#include <cstdint>
#include <cstring>

#include "core/bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ernie::cpu::ERNIE_ISA {
namespace {

#if defined(__AVX512F__)

struct F32 {
  static constexpr int64_t kWidth = 16;
  __m512 v;
};
inline F32 set(float s) { return {_mm512_set1_ps(s)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// As the x86 instruction: the second operand where either is NaN.
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
// a * 2^n for integral n.
inline F32 scale_by_power(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// One bit per lane.
inline uint32_t equal_mask(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline uint32_t at_least_mask(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
// Of the pairs (0, 1), (2, 3), ...: the first of each twice, the second twice, the two exchanged.
inline F32 firsts(F32 a) { return {_mm512_moveldup_ps(a.v)}; }
inline F32 seconds(F32 a) { return {_mm512_movehdup_ps(a.v)}; }
inline F32 exchanged(F32 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
// a - b in the first lane of each pair, a + b in the second.
inline F32 sub_add(F32 a, F32 b) {
  return {_mm512_mask_sub_ps(_mm512_add_ps(a.v, b.v), 0x5555, a.v, b.v)};
}
inline float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
inline float max_of(F32 a) { return _mm512_reduce_max_ps(a.v); }

// All tiers round alike: to nearest even, NaN quiet.
inline __m256i bf16_bits(F32 a) {
#if defined(__AVX512BF16__)
  constexpr int kDenormal = 0x20;  // the instruction would take those as zero
  if (_mm512_fpclass_ps_mask(a.v, kDenormal) == 0) [[likely]]
    return (__m256i)_mm512_cvtneps_pbh(a.v);
#endif
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i bits = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}
inline void store(bf16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16_bits(a));
}

// The first n < kWidth elements; the other lanes are zero, or are not written.
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline F32 load_first(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline F32 load_first(const bf16* p, int64_t n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline void store_first(float* p, F32 a, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
inline void store_first(bf16* p, F32 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), bf16_bits(a));
}
#define ERNIE_HAS_FIRST_LANES 1
#define ERNIE_HAS_BF16_STORE 1

#elif defined(__AVX2__)

struct F32 {
  static constexpr int64_t kWidth = 8;
  __m256 v;
};
inline F32 set(float s) { return {_mm256_set1_ps(s)}; }
inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// In two halves, so that results from 2^-149 to 2^127 come out although 2^n itself would not fit.
inline F32 scale_by_power(F32 a, F32 n) {
  const __m256i i = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 p = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 q = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, p), q)};
}
inline uint32_t equal_mask(F32 a, F32 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ));
}
inline uint32_t at_least_mask(F32 a, F32 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ));
}
inline F32 firsts(F32 a) { return {_mm256_moveldup_ps(a.v)}; }
inline F32 seconds(F32 a) { return {_mm256_movehdup_ps(a.v)}; }
inline F32 exchanged(F32 a) { return {_mm256_permute_ps(a.v, 0xb1)}; }
inline F32 sub_add(F32 a, F32 b) { return {_mm256_addsub_ps(a.v, b.v)}; }
inline float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float max_of(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline void store(bf16* p, F32 a) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256i bits =
      _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up),
                                                             _mm256_castsi256_ps(quiet), nan)),
                        16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
#define ERNIE_HAS_BF16_STORE 1

#else

// Four lanes of plain arrays: the compiler finds the vector instructions of the baseline.
struct F32 {
  static constexpr int64_t kWidth = 4;
  float v[4];
};
#define ERNIE_LANES(expression)                      \
  F32 r;                                             \
  for (int i = 0; i < 4; ++i) r.v[i] = (expression); \
  return r
inline F32 set(float s) { ERNIE_LANES(s); }
inline F32 load(const float* p) { ERNIE_LANES(p[i]); }
inline F32 load(const bf16* p) { ERNIE_LANES(to_float(p[i])); }
inline void store(float* p, F32 a) {
  for (int i = 0; i < 4; ++i) p[i] = a.v[i];
}
inline F32 add(F32 a, F32 b) { ERNIE_LANES(a.v[i] + b.v[i]); }
inline F32 sub(F32 a, F32 b) { ERNIE_LANES(a.v[i] - b.v[i]); }
inline F32 mul(F32 a, F32 b) { ERNIE_LANES(a.v[i] * b.v[i]); }
inline F32 div(F32 a, F32 b) { ERNIE_LANES(a.v[i] / b.v[i]); }
inline F32 fma(F32 a, F32 b, F32 c) { ERNIE_LANES(a.v[i] * b.v[i] + c.v[i]); }
inline F32 max(F32 a, F32 b) { ERNIE_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F32 min(F32 a, F32 b) { ERNIE_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F32 round(F32 a) { ERNIE_LANES(rintf(a.v[i])); }
inline F32 scale_by_power(F32 a, F32 n) {
  // A NaN power has no integer; the product with NaN is what it should be.
  ERNIE_LANES(n.v[i] == n.v[i] ? ldexpf(a.v[i], static_cast<int>(n.v[i])) : n.v[i]);
}
inline F32 firsts(F32 a) { ERNIE_LANES(a.v[i & ~1]); }
inline F32 seconds(F32 a) { ERNIE_LANES(a.v[i | 1]); }
inline F32 exchanged(F32 a) { ERNIE_LANES(a.v[i ^ 1]); }
inline F32 sub_add(F32 a, F32 b) { ERNIE_LANES(i & 1 ? a.v[i] + b.v[i] : a.v[i] - b.v[i]); }
#undef ERNIE_LANES
inline uint32_t equal_mask(F32 a, F32 b) {
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) mask |= uint32_t{a.v[i] == b.v[i]} << i;
  return mask;
}
inline uint32_t at_least_mask(F32 a, F32 b) {
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) mask |= uint32_t{a.v[i] >= b.v[i]} << i;
  return mask;
}
inline float sum(F32 a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
inline float max_of(F32 a) {
  const float p = a.v[0] > a.v[1] ? a.v[0] : a.v[1], q = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return p > q ? p : q;
}

#endif

#if !defined(ERNIE_HAS_BF16_STORE)
inline void store(bf16* p, F32 a) {
  float lanes[F32::kWidth];
  store(lanes, a);
  for (int64_t i = 0; i < F32::kWidth; ++i) p[i] = to_bf16(lanes[i]);
}
#endif

inline float load1(const float* p) { return *p; }
inline float load1(const bf16* p) { return to_float(*p); }
inline void store1(float* p, float a) { *p = a; }
inline void store1(bf16* p, float a) { *p = to_bf16(a); }

#if !defined(ERNIE_HAS_FIRST_LANES)
// The first n < kWidth elements; the other lanes are zero, or are not written.
template <class T>
inline F32 load_first(const T* p, int64_t n) {
  float lanes[F32::kWidth] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = load1(p + i);
  return load(lanes);
}
template <class T>
inline void store_first(T* p, F32 a, int64_t n) {
  T lanes[F32::kWidth];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// Rounds each lane to T's precision and back: what a store and a load would do.
inline F32 round_to(F32 a, const float*) { return a; }
inline F32 round_to(F32 a, const bf16*) {
  bf16 lanes[F32::kWidth];
  store(lanes, a);
  return load(lanes);
}

// e^x within 1.5 ulp. Below the smallest normal result it gives zero or a denormal as accurate as
// that allows; above the largest, infinity; NaN stays NaN.
// Cody-Waite reduction x = n ln2 + r, |r| <= ln2 / 2; (e^r - 1 - r) / r^2 is a polynomial through
// the Chebyshev nodes of that range.
inline F32 exp(F32 x) {
  // max/min return their second operand for NaN, which is why x stands there.
  const F32 bounded = min(set(89.f), max(set(-104.f), x));
  const F32 n = round(mul(bounded, set(1.44269504088896341f)));
  F32 r = fma(n, set(-0.693145751953125f), bounded);
  r = fma(n, set(-1.42860682030941723212e-6f), r);
  F32 p = set(1.3926192586e-3f);
  p = fma(p, r, set(8.3631862556e-3f));
  p = fma(p, r, set(4.1666554563e-2f));
  p = fma(p, r, set(1.6666576946e-1f));
  p = fma(p, r, set(0.5f));
  p = fma(mul(r, r), p, r);
  return scale_by_power(add(p, set(1.f)), n);
}

// Calls f(i, n) over [0, count): n == kWidth for whole registers, less for the tail.
template <class F>
inline void for_each_register(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + F32::kWidth <= count; i += F32::kWidth) f(i, F32::kWidth);
  if (i < count) f(i, count - i);
}
template <class T>
inline F32 load_n(const T* p, int64_t n) {
  return n == F32::kWidth ? load(p) : load_first(p, n);
}
template <class T>
inline void store_n(T* p, F32 a, int64_t n) {
  n == F32::kWidth ? store(p, a) : store_first(p, a, n);
}

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
