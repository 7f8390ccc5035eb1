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
void pack_keys_t(const T* keys, int64_t count, int64_t head_dim, float* out) {
  constexpr int64_t W = F32::kWidth;
  for (int64_t j = 0; j < kPanelKeys; j += W) {
    int64_t d = 0;
    for (; d + W <= head_dim; d += W) {
      F32 rows[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i)
        rows[i] = j + i < count ? load(keys + (j + i) * head_dim + d) : set(0.f);
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; ++i) store(out + (d + i) * kPanelKeys + j, rows[i]);
    }
    for (; d < head_dim; ++d)
      for (int64_t i = 0; i < W; ++i)
        out[d * kPanelKeys + j + i] = j + i < count ? load1(keys + (j + i) * head_dim + d) : 0.f;
  }
}

// One pair of every key after the other: the pairs of 16 keys are 32-bit words to be transposed.
void pack_key_pairs(const bf16* keys, int64_t count, int64_t head_dim, bf16* out) {
  int64_t d = 0;
#if defined(__AVX512F__)
  constexpr int64_t kWords = F32::kWidth;
  for (; d + 2 * kWords <= head_dim; d += 2 * kWords) {
    F32 rows[kWords];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWords; ++i)
      rows[i] = i < count ? F32{_mm512_castsi512_ps(_mm512_loadu_si512(keys + i * head_dim + d))}
                          : set(0.f);
    transpose(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWords; ++i)
      _mm512_storeu_si512(out + (d / 2 + i) * 2 * kPanelKeys, _mm512_castps_si512(rows[i].v));
  }
#endif
  for (; d < head_dim; ++d)
    for (int64_t i = 0; i < kPanelKeys; ++i)
      out[d / 2 * 2 * kPanelKeys + 2 * i + d % 2] = i < count ? keys[i * head_dim + d] : bf16{};
}

template <class T>
void pack_value_t(const T* value, int64_t head_dim, float* out, int64_t panel_stride) {
  constexpr int64_t W = F32::kWidth;
  for (int64_t d = 0; d < head_dim; d += W) {
    float* to = out + d / kPanelKeys * panel_stride + d % kPanelKeys;
    store(to, d + W <= head_dim ? load(value + d) : load_first(value + d, head_dim - d));
  }
  for (int64_t d = (head_dim + W - 1) / W * W; d % kPanelKeys != 0; d += W)
    store(out + d / kPanelKeys * panel_stride + d % kPanelKeys, set(0.f));
}

inline void scale_row(float* row, int64_t n, float factor) {
  for_each_register(
      n, [&](int64_t i, int64_t m) { store_n(row + i, mul(load_n(row + i, m), set(factor)), m); });
}

inline float exp1(float x) {
  float lanes[F32::kWidth];
  store(lanes, exp(set(x)));
  return lanes[0];
}

template <class T>
void divide_row_t(const float* acc, float sum, T* out, int64_t n) {
  for_each_register(
      n, [&](int64_t i, int64_t m) { store_n(out + i, div(load_n(acc + i, m), set(sum)), m); });
}

}  // namespace

void pack_keys(const float* keys, int64_t count, int64_t head_dim, float* out) {
  pack_keys_t(keys, count, head_dim, out);
}
void pack_keys(const bf16* keys, int64_t count, int64_t head_dim, float* out) {
  pack_keys_t(keys, count, head_dim, out);
}
void pack_keys(const bf16* keys, int64_t count, int64_t head_dim, bf16* out) {
  pack_key_pairs(keys, count, head_dim, out);
}
void pack_value(const float* value, int64_t head_dim, float* out, int64_t panel_stride) {
  pack_value_t(value, head_dim, out, panel_stride);
}
void pack_value(const bf16* value, int64_t head_dim, float* out, int64_t panel_stride) {
  pack_value_t(value, head_dim, out, panel_stride);
}

// Lane i sums the keys i, i + kWidth, ... whatever `count` is, and hidden keys add an exact zero: a
// row gets the same bits alone as beside rows that see more.
void softmax_row(float* s, int64_t visible, int64_t count, float scale, float* maximum, float* sum,
                 float* acc, int64_t n) {
  constexpr int64_t W = F32::kWidth;
  const F32 none = set(-INFINITY);
  const F32 factor = set(scale);
  F32 highest = none;
  for_each_register(visible, [&](int64_t j, int64_t m) {
    const F32 scaled = mul(load_n(s + j, m), factor);
    store_n(s + j, scaled, m);
    if (m == W) {
      highest = max(scaled, highest);
      return;
    }
    float lanes[W];
    store(lanes, none);
    for (int64_t i = 0; i < m; ++i) lanes[i] = s[j + i];
    highest = max(load(lanes), highest);
  });
  const float found = max_of(highest);
  const float before = *maximum, now = found > before ? found : before;
  *maximum = now;

  F32 total = set(0.f);
  const F32 shift = set(now == -INFINITY ? 0.f : now);  // then exp(-inf - 0) is zero, not NaN
  for_each_register(visible, [&](int64_t j, int64_t m) {
    F32 p = exp(sub(load_n(s + j, m), shift));
    store_n(s + j, p, m);
    if (m < W) p = load_first(s + j, m);
    total = add(total, p);
  });
  for (int64_t j = visible; j < count; ++j) s[j] = 0.f;

  if (now != before) {  // a factor of one changes nothing
    const float shrink = exp1(before - now);
    *sum *= shrink;
    scale_row(acc, n, shrink);
  }
  *sum += ernie::cpu::ERNIE_ISA::sum(total);
}

void merge_row(float* total_maximum, float* total_sum, float* total, float maximum, float sum,
               const float* acc, int64_t n) {
  const float before = *total_maximum, now = maximum > before ? maximum : before;
  const float keep = exp1(before - now), take = exp1(maximum - now);
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
