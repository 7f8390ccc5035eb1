// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/attention.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr int64_t kPanelKeys = 16;

#if defined(__AVX512F__)

// r[i][j] becomes r[j][i].
inline void transpose(F32 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  __m512 u[16];  // u[4q + c]: rows 4q .. 4q+3 of column c, 4+c, 8+c, 12+c, one per 128-bit lane
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const auto d = [&](int i) { return _mm512_castps_pd(t[4 * q + i]); };
    u[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
    u[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
    u[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
    u[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x44);
    const __m512 high01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xee);
    r[c].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
    r[4 + c].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[8 + c].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
    r[12 + c].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

#elif defined(__AVX2__)

inline void transpose(F32 (&r)[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    u[4 * q] = _mm256_shuffle_ps(t[4 * q], t[4 * q + 2], 0x44);
    u[4 * q + 1] = _mm256_shuffle_ps(t[4 * q], t[4 * q + 2], 0xee);
    u[4 * q + 2] = _mm256_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0x44);
    u[4 * q + 3] = _mm256_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c].v = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    r[4 + c].v = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}

#else

inline void transpose(F32 (&r)[4]) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = kept;
    }
}

#endif

template <class T>
void pack_keys_t(const T* keys, int64_t stride, int64_t count, int64_t head_dim, float* out) {
  constexpr int64_t W = F32::kWidth;
  for (int64_t j = 0; j < kPanelKeys; j += W) {
    int64_t d = 0;
    for (; d + W <= head_dim; d += W) {
      F32 rows[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i)
        rows[i] = j + i < count ? load(keys + (j + i) * stride + d) : set(0.f);
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) store(out + (d + i) * kPanelKeys + j, rows[i]);
    }
    for (; d < head_dim; ++d)
      for (int64_t i = 0; i < W; ++i)
        out[d * kPanelKeys + j + i] = j + i < count ? load1(keys + (j + i) * stride + d) : 0.f;
  }
}

// One pair of every key after the other: the pairs of 16 keys are 32-bit words to be transposed.
void pack_key_pairs(const bf16* keys, int64_t stride, int64_t count, int64_t head_dim, bf16* out) {
#if defined(__AVX512F__)
  constexpr int64_t kWords = F32::kWidth;
  for (int64_t d = 0; d < head_dim; d += 2 * kWords) {
    const int64_t words = head_dim - d < 2 * kWords ? (head_dim - d) / 2 : kWords;
    const auto present = static_cast<__mmask16>((1u << words) - 1);
    F32 rows[kWords];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWords; ++i)
      rows[i] =
          i < count
              ? F32{_mm512_castsi512_ps(_mm512_maskz_loadu_epi32(present, keys + i * stride + d))}
              : set(0.f);
    transpose(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWords; ++i)
      if (i < words)
        _mm512_storeu_si512(out + (d / 2 + i) * 2 * kPanelKeys, _mm512_castps_si512(rows[i].v));
  }
#else
  for (int64_t d = 0; d < head_dim; ++d)
    for (int64_t i = 0; i < kPanelKeys; ++i)
      out[d / 2 * 2 * kPanelKeys + 2 * i + d % 2] = i < count ? keys[i * stride + d] : bf16{};
#endif
}

// Whether all lanes are finite: x - x is NaN for the others.
inline bool is_finite(F32 x) {
  const F32 zero = set(0.f);
  return equal_mask(sub(x, x), zero) == equal_mask(zero, zero);
}

template <class T>
bool pack_values_t(const T* values, int64_t stride, int64_t count, int64_t head_dim, float* out,
                   int64_t panel_stride) {
  constexpr int64_t W = F32::kWidth;
  bool finite = true;
  for (int64_t j = 0; j < count; ++j, values += stride, out += kPanelKeys) {
    for (int64_t d = 0; d < head_dim; d += W) {
      const F32 value = d + W <= head_dim ? load(values + d) : load_first(values + d, head_dim - d);
      finite &= is_finite(value);
      store(out + d / kPanelKeys * panel_stride + d % kPanelKeys, value);
    }
    for (int64_t d = (head_dim + W - 1) / W * W; d % kPanelKeys != 0; d += W)
      store(out + d / kPanelKeys * panel_stride + d % kPanelKeys, set(0.f));
  }
  return finite;
}

// Two values become one row of pairs; a missing second one counts as zero.
bool pack_value_pair(const bf16* first, const bf16* second, int64_t head_dim, bf16* out,
                     int64_t panel_stride) {
  uint16_t largest = 0;
  int64_t d = 0;
#if defined(__AVX512F__)
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 special = 0;
  for (; d + kPanelKeys <= head_dim; d += kPanelKeys) {
    const auto half = [&](const bf16* p) {
      return p ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + d))
               : _mm256_setzero_si256();
    };
    const __m512i pairs = _mm512_permutexvar_epi16(
        order, _mm512_inserti64x4(_mm512_castsi256_si512(half(first)), half(second), 1));
    special |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
    _mm512_storeu_si512(out + d / kPanelKeys * panel_stride, pairs);
  }
  if (special != 0) largest = 0x7f80;
#endif
  for (; d % kPanelKeys != 0 || d < head_dim; ++d) {
    bf16* pair = out + d / kPanelKeys * panel_stride + d % kPanelKeys * 2;
    pair[0] = d < head_dim ? first[d] : bf16{};
    pair[1] = d < head_dim && second ? second[d] : bf16{};
    for (int i = 0; i < 2; ++i) {
      const uint16_t bits = pair[i].bits & 0x7f80;
      largest = bits > largest ? bits : largest;
    }
  }
  return largest < 0x7f80;
}

inline void scale_row(float* row, int64_t n, float factor) {
  for_each_register(
      n, [&](int64_t i, int64_t m) { store_n(row + i, mul(load_n(row + i, m), set(factor)), m); });
}

// 2^x for x <= 0, or hardly above, within 3 ulp; exactly 0 far below, exactly 1 at 0; NaN stays
// NaN. (2^r - 1) / r, |r| <= 1/2, is a polynomial of least relative error of 2^r.
inline F32 power_of_two(F32 x) {
  const F32 bounded = max(set(-160.f), x);  // the second operand, should it be NaN
  const F32 n = round(bounded);
  const F32 r = sub(bounded, n);
  F32 q = set(1.326472731e-3f);
  q = fma(q, r, set(9.671512991e-3f));
  q = fma(q, r, set(5.550733581e-2f));
  q = fma(q, r, set(2.402224243e-1f));
  q = fma(q, r, set(6.931470037e-1f));
  return scale_by_power(fma(q, r, set(1.f)), n);
}

inline float power_of_two1(float x) {
  float lanes[F32::kWidth];
  store(lanes, power_of_two(set(x)));
  return lanes[0];
}

template <class T>
void divide_row_t(const float* acc, float sum, T* out, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    // Minus zero, which is all that a product with a hidden key can leave, becomes zero.
    const F32 value = add(load_n(acc + i, m), set(0.f));
    store_n(out + i, div(value, set(sum)), m);
  });
}

constexpr int64_t kRegisters = kTileKeys / F32::kWidth;

inline void store_probabilities(float* p, const F32 (&value)[kRegisters]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRegisters; ++i) store(p + i * F32::kWidth, value[i]);
}
inline void store_probabilities(bf16* p, const F32 (&value)[kRegisters]) {
#if defined(__AVX512BF16__)
  // Takes denormals as zero, as the product would.
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRegisters; i += 2)
    _mm512_storeu_si512(p + i * F32::kWidth,
                        (__m512i)_mm512_cvtne2ps_pbh(value[i + 1].v, value[i].v));
#else
  for (int64_t i = 0; i < kRegisters; ++i) store(p + i * F32::kWidth, value[i]);
#endif
}

// Lane i of the result combines all lanes of r[i], in an order of its own.
template <class F>
inline F32 across(F32 (&r)[F32::kWidth], const F& combine) {
  transpose(r);
#pragma GCC unroll 4
  for (int64_t step = F32::kWidth / 2; step > 0; step /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < step; ++i) r[i] = combine(r[i], r[i + step]);
  return r[0];
}

// Lanes of which the largest of a row's scaled scores is one.
inline F32 largest_lanes(float* s, int64_t visible, F32 factor) {
  // A score that does not count takes the place of those that are hidden.
  for (int64_t j = visible; j < kTileKeys; ++j) s[j] = s[0];
  F32 largest = set(-INFINITY);
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileKeys; i += F32::kWidth)
    largest = max(mul(load(s + i), factor), largest);  // the second operand, should one be NaN
  return largest;
}

// A row's scores become probabilities; the lanes of their sum. A scaled score is rounded as the
// largest was: the difference of that one is zero, however large it is.
template <class P>
inline F32 probabilities(float* s, int64_t visible, F32 factor, F32 shift) {
  F32 p[kRegisters];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRegisters; ++i)
    p[i] = power_of_two(sub(mul(load(s + i * F32::kWidth), factor), shift));
  if (visible < kTileKeys) {
    float lanes[kTileKeys];
    for (int64_t i = 0; i < kRegisters; ++i) store(lanes + i * F32::kWidth, p[i]);
    for (int64_t j = visible; j < kTileKeys; ++j) lanes[j] = 0.f;
    for (int64_t i = 0; i < kRegisters; ++i) p[i] = load(lanes + i * F32::kWidth);
  }
  store_probabilities(reinterpret_cast<P*>(s), p);
  F32 total = p[0];
#pragma GCC unroll 16
  for (int64_t i = 1; i < kRegisters; ++i) total = add(total, p[i]);
  return total;
}

// Of n rows, one a lane; the lanes of rows beyond n are zero, or -infinity for a largest score.
// Lane i of a row's own sums the keys i, i + kWidth, ... whatever is visible, and hidden keys add
// an exact zero: a row gets the same bits alone as beside rows that see more.
template <class P>
inline void softmax_rows(const SoftmaxTile& t, int64_t first, int64_t n) {
  constexpr float kLog2E = 1.44269504088896341f, kLowest = -3e38f;
  const F32 factor = set(t.scale * kLog2E);
  float* scores = t.scores + first * kTileKeys;
  const int32_t* visible = t.visible + first;
  F32 row[F32::kWidth];
  for (int64_t i = 0; i < F32::kWidth; ++i)
    row[i] = i < n ? largest_lanes(scores + i * kTileKeys, visible[i], factor) : set(-INFINITY);
  const F32 before = load_n(t.maximum + first, n);
  const F32 now = max(across(row, [](F32 a, F32 b) { return max(a, b); }), before);
  // With nothing but -infinity so far the shift is finite: then 2^(-infinity - shift) is zero, not
  // NaN.
  const F32 shift = max(set(kLowest), now);
  const F32 shrink = power_of_two(sub(before, shift));
  float highest[F32::kWidth], shifts[F32::kWidth], factors[F32::kWidth];
  store(highest, now);
  store(shifts, shift);
  store(factors, shrink);
  for (int64_t i = 0; i < F32::kWidth; ++i)
    row[i] = i < n ? probabilities<P>(scores + i * kTileKeys, visible[i], factor, set(shifts[i]))
                   : set(0.f);
  const F32 total = across(row, [](F32 a, F32 b) { return add(a, b); });
  for (int64_t i = 0; i < n; ++i)
    // A factor of one changes nothing, and a first maximum finds nothing to change.
    if (highest[i] != t.maximum[first + i] && t.maximum[first + i] != -INFINITY)
      scale_row(t.acc + (first + i) * t.width, t.width, factors[i]);
  store_n(t.sum + first, add(mul(load_n(t.sum + first, n), shrink), total), n);
  store_n(t.maximum + first, now, n);
}

template <class P>
void softmax_t(const SoftmaxTile& t) {
  for_each_register(t.rows, [&](int64_t r, int64_t n) { softmax_rows<P>(t, r, n); });
}

}  // namespace

void pack_keys(const float* keys, int64_t stride, int64_t count, int64_t head_dim, float* out) {
  pack_keys_t(keys, stride, count, head_dim, out);
}
void pack_keys(const bf16* keys, int64_t stride, int64_t count, int64_t head_dim, float* out) {
  pack_keys_t(keys, stride, count, head_dim, out);
}
void pack_keys(const bf16* keys, int64_t stride, int64_t count, int64_t head_dim, bf16* out) {
  pack_key_pairs(keys, stride, count, head_dim, out);
}
bool pack_values(const float* values, int64_t stride, int64_t count, int64_t head_dim, float* out,
                 int64_t panel_stride) {
  return pack_values_t(values, stride, count, head_dim, out, panel_stride);
}
bool pack_values(const bf16* values, int64_t stride, int64_t count, int64_t head_dim, float* out,
                 int64_t panel_stride) {
  return pack_values_t(values, stride, count, head_dim, out, panel_stride);
}
bool pack_values(const bf16* values, int64_t stride, int64_t count, int64_t head_dim, bf16* out,
                 int64_t panel_stride) {
  bool finite = true;
  for (int64_t j = 0; j < count; j += 2)
    finite &=
        pack_value_pair(values + j * stride, j + 1 < count ? values + (j + 1) * stride : nullptr,
                        head_dim, out + j * kPanelKeys, panel_stride);
  return finite;
}

void softmax_f32(const SoftmaxTile& t) { softmax_t<float>(t); }
void softmax_bf16(const SoftmaxTile& t) { softmax_t<bf16>(t); }

void merge_row(float* total_maximum, float* total_sum, float* total, float maximum, float sum,
               const float* acc, int64_t n) {
  const float before = *total_maximum, now = maximum > before ? maximum : before;
  const float keep = power_of_two1(before - now), take = power_of_two1(maximum - now);
  *total_maximum = now;
  *total_sum = *total_sum * keep + sum * take;
  for_each_register(n, [&](int64_t i, int64_t m) {
    const F32 kept = mul(load_n(total + i, m), set(keep));
    store_n(total + i, fma(load_n(acc + i, m), set(take), kept), m);
  });
}

void divide_row(const float* acc, float sum, float* out, int64_t n) {
  divide_row_t(acc, sum, out, n);
}
void divide_row(const float* acc, float sum, bf16* out, int64_t n) {
  divide_row_t(acc, sum, out, n);
}

}  // namespace ernie::cpu::ERNIE_ISA
