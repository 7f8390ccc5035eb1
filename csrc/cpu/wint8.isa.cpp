// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/wint8.isa.h"

#include "cpu/quantize_activations.isa.h"
#include "cpu/quantized_tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

#if defined(__AVX512F__)
// The bytes of every magnitude as bfloat16, and which of 64 low ones and 64 high ones make the
// pairs of the first two or of the last two k.
struct alignas(64) Bf16Bytes {
  uint8_t low[128] = {}, high[128] = {};
  uint8_t first_pairs[64] = {}, second_pairs[64] = {};

  constexpr Bf16Bytes() {
    for (int m = 1; m < 128; ++m) {
      int exponent = 0;
      while (m >> exponent > 1) ++exponent;
      const int bits = (127 + exponent) << 7 | ((m << (7 - exponent)) & 0x7f);
      low[m] = bits & 0xff;
      high[m] = bits >> 8;
    }
    for (int i = 0; i < 32; ++i) {
      first_pairs[2 * i] = i / 2 * 4 + i % 2;
      second_pairs[2 * i] = first_pairs[2 * i] + 2;
      first_pairs[2 * i + 1] = first_pairs[2 * i] + 64;
      second_pairs[2 * i + 1] = second_pairs[2 * i] + 64;
    }
  }
};
constexpr Bf16Bytes kBf16Bytes;

inline __m512i look_up(const uint8_t (&table)[128], __m512i bytes) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table), bytes, _mm512_load_si512(table + 64));
}
#endif

struct Format {
  static constexpr int kWordK = 4;

#if defined(__AVX512F__)

  template <int I>
  static inline F32 column(Words words) {
    // A dot product with 1 in one place: the byte, its sign extended, by one instruction.
    const __m512i one = _mm512_set1_epi32(1 << 8 * I);
    return {_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), one, words))};
  }

  template <int P>
  static inline Pairs pairs(Words words) {
    // A look-up takes seven bits: the magnitude 128 finds the bytes of 0, of which the low one is
    // its own and the high one is put right.
    const __m512i magnitude = _mm512_abs_epi8(words);
    const __m512i low = look_up(kBf16Bytes.low, magnitude);
    constexpr int kOrOfAnd = 0xf8;  // a | (b & c)
    const __m512i high = _mm512_mask_mov_epi8(
        _mm512_ternarylogic_epi32(look_up(kBf16Bytes.high, magnitude), words,
                                  _mm512_set1_epi8(static_cast<char>(0x80)), kOrOfAnd),
        _mm512_movepi8_mask(magnitude), _mm512_set1_epi8(static_cast<char>(0xc3)));
    return _mm512_permutex2var_epi8(
        low, _mm512_load_si512(P == 0 ? kBf16Bytes.first_pairs : kBf16Bytes.second_pairs), high);
  }

#else

#if defined(__AVX2__)
  template <int I>
  static inline F32 column(Words words) {
    const __m256i top = I == 3 ? words : _mm256_slli_epi32(words, 24 - 8 * I);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24))};
  }
#else
  template <int I>
  static inline F32 column(const Words& words) {
    F32 r;
    for (int n = 0; n < F32::kWidth; ++n) r.v[n] = words.v[4 * n + I];
    return r;
  }
#endif

  template <int P>
  static inline Pairs pairs(const Words& words) {
    return pairs_of(column<2 * P>(words), column<2 * P + 1>(words));
  }

#endif

  static inline int value(const uint8_t* w, int i) { return static_cast<int8_t>(w[i]); }

  template <int ROWS, int NV>
  static inline void add_word(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride,
                              const uint8_t* w, int64_t w_stride) {
    add_pair<Format, 0>(acc, x, x_stride, w, w_stride);
    add_pair<Format, 1>(acc, x, x_stride, w, w_stride);
  }

#if defined(__AVX512BF16__)
  // Both pairs at once: they share the look-ups.
  template <int ROWS, int NV>
  static inline void add_word(F32 (&acc)[ROWS][NV], const bf16* x, int64_t x_stride,
                              const uint8_t* w, int64_t w_stride) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) {
      const Words words = words_of(w, w_stride, v);
      const Pairs first = pairs<0>(words), second = pairs<1>(words);
      ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
        F32& sum = acc[r][v];
        const bf16* row = x + r * x_stride;
        sum.v = _mm512_dpbf16_ps(sum.v, (__m512bh)first, broadcast_pair(row));
        sum.v = _mm512_dpbf16_ps(sum.v, (__m512bh)second, broadcast_pair(row + 2));
      }
    }
  }
#endif
};

// ------------------------------------------------------------------------ products with int8 x
//
// I32: a register of int32 sums.  Weights: four k of as many outputs, ready for
//   dot(sums, weights, x)  adds the four products of each output, x being four int8
//   first_sums(x_sum)      where a group's sums start

#if defined(__AVX512F__)

// The type of the instruction's operands: of __m512i, GCC 12 keeps a copy of each sum in memory.
struct I32 {
  int32_t v __attribute__((vector_size(64)));
};
using Weights = __m512i;
// The instruction wants one unsigned operand: weights plus 128, which adds 128 times the sum of x.
inline Weights ready(Words quads) {
  return _mm512_xor_si512(quads, _mm512_set1_epi32(static_cast<int32_t>(0x80808080u)));
}
inline I32 first_sums(int32_t x_sum) { return {(decltype(I32::v))_mm512_set1_epi32(-128 * x_sum)}; }
inline void dot(I32& sums, Weights weights, int32_t x) {
  sums.v = (decltype(I32::v))_mm512_dpbusd_epi32((__m512i)sums.v, weights, _mm512_set1_epi32(x));
}
inline F32 to_f32(I32 sums) { return {_mm512_cvtepi32_ps((__m512i)sums.v)}; }

#elif defined(__AVX2__)

struct I32 {
  __m256i v;
};
struct Weights {
  __m256i value, magnitude;
};
inline Weights ready(Words quads) { return {quads, _mm256_abs_epi8(quads)}; }
inline I32 first_sums(int32_t) { return {_mm256_setzero_si256()}; }
inline void dot(I32& sums, const Weights& weights, int32_t x) {
  // Unsigned by signed: abs(w) * (x with the sign of w). Two of them, up to 128 * 127 each, fit
  // into the 16 bits to which the instruction would saturate.
  const __m256i with_sign = _mm256_sign_epi8(_mm256_set1_epi32(x), weights.value);
  const __m256i two = _mm256_maddubs_epi16(weights.magnitude, with_sign);
  sums.v = _mm256_add_epi32(sums.v, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
inline F32 to_f32(I32 sums) { return {_mm256_cvtepi32_ps(sums.v)}; }

#else

struct I32 {
  int32_t v[F32::kWidth];
};
using Weights = Words;
inline const Weights& ready(const Words& quads) { return quads; }
inline I32 first_sums(int32_t) { return {}; }
inline void dot(I32& sums, const Weights& weights, int32_t x) {
  int8_t values[4];
  memcpy(values, &x, sizeof values);
  for (int n = 0; n < F32::kWidth; ++n)
    for (int i = 0; i < 4; ++i) sums.v[n] += values[i] * weights.v[4 * n + i];
}
inline F32 to_f32(const I32& sums) {
  F32 r;
  for (int n = 0; n < F32::kWidth; ++n) r.v[n] = static_cast<float>(sums.v[n]);
  return r;
}

#endif

// a * b + c, rounded once on every tier; simd.isa.h's fma rounds twice on the portable one.
inline F32 fused(F32 a, F32 b, F32 c) {
#if defined(__AVX2__)
  return fma(a, b, c);
#else
  for (int n = 0; n < F32::kWidth; ++n) c.v[n] = fmaf(a.v[n], b.v[n], c.v[n]);
  return c;
#endif
}

// Four k of ROWS rows.
template <int ROWS, int NV>
inline void dot_step(I32 (&sums)[ROWS][NV], const int8_t* x, int64_t x_stride, const int8_t* w,
                     int64_t w_stride) {
  Weights weights[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weights[v] = ready(words_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    int32_t values;
    memcpy(&values, x + r * x_stride, sizeof values);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) dot(sums[r][v], weights[v], values);
  }
}

// Where the weights are in cache.
struct NothingAhead {
  NothingAhead(const void*, int64_t, const void*) {}
  void next_line() {}
};

// The integers of one group: `quads` times four k, of ROWS rows.
template <int ROWS, int NV, class A>
inline void sum_group(I32 (&sums)[ROWS][NV], const int8_t* x, int64_t x_stride, const int8_t* w,
                      int64_t w_stride, int64_t quads, A& ahead) {
  // Whole groups in four rounds: a loop of sixteen mispredicts its end.
  for (; quads >= 4; quads -= 4, x += 16, w += 4 * kWordsBytes) {
    ERNIE_UNROLL for (int q = 0; q < 4; ++q) {
      ahead.next_line();
      dot_step(sums, x + 4 * q, x_stride, w + q * kWordsBytes, w_stride);
    }
  }
  for (; quads > 0; --quads, x += 4, w += kWordsBytes) {
    ahead.next_line();
    dot_step(sums, x, x_stride, w, w_stride);
  }
}

#if defined(__AVX512F__)
// A single row of one panel. Four chains of sums, exact in any order, keep up with the memory.
template <class A>
inline void sum_group(I32 (&sums)[1][1], const int8_t* x, int64_t, const int8_t* w, int64_t,
                      int64_t quads, A& ahead) {
  constexpr int kGroupWords = kActivationGroup / 4, kChains = 4;
  I32 chains[kChains] = {sums[0][0], first_sums(0), first_sums(0), first_sums(0)};
  const auto add_quad = [&](I32& chain, int64_t q) {
    int32_t values;
    memcpy(&values, x + 4 * q, sizeof values);
    dot(chain, ready(load_words(w + q * kWordsBytes)), values);
    ahead.next_line();
  };
  if (quads == kGroupWords) [[likely]] {
    ERNIE_UNROLL for (int q = 0; q < kGroupWords; ++q) add_quad(chains[q % kChains], q);
  } else {
    for (int64_t q = 0; q < quads; ++q) add_quad(chains[0], q);
  }
  sums[0][0].v = (chains[0].v + chains[1].v) + (chains[2].v + chains[3].v);
}
#endif

// Integers and float sums of a tile stay in registers together. Larger tiles, with the floats in
// memory, reach 71 % of the instruction's peak on Zen 5, these 88 %.
template <int ROWS, int PANELS, class A>
inline void int8_tile(const Wint8ActivationBlock& b, int64_t row, int64_t panel) {
  constexpr int NV = PANELS * static_cast<int>(kVectors);
  constexpr int64_t kGroupWords = kActivationGroup / 4;
  const int64_t x_stride = kActivationGroup * b.row_groups;
  const int8_t* x = b.x + row * x_stride;
  const float* x_scale = b.x_scale + row * b.row_groups;
  const int32_t* x_sum = b.x_sum + row * b.row_groups;
  const int8_t* w = b.w + panel * b.w_stride;
  A ahead(w, b.w_stride, b.w_end);
  float* out = b.acc + row * b.acc_stride + panel * kPanelRows;
  F32 acc[ROWS][NV];
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] =
        b.accumulate ? load(out + r * b.acc_stride + v * F32::kWidth) : set(0.f);
  }
  for (int64_t left = b.quads; left > 0; left -= kGroupWords) {
    I32 sums[ROWS][NV];
    ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
      ERNIE_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = first_sums(x_sum[r * b.row_groups]);
    }
    sum_group(sums, x, x_stride, w, b.w_stride, left < kGroupWords ? left : kGroupWords, ahead);
    ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
      const F32 scale = set(x_scale[r * b.row_groups]);
      ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] =
          fused(scale, to_f32(sums[r][v]), acc[r][v]);
    }
    x += kActivationGroup;
    x_scale += 1;
    x_sum += 1;
    w += kGroupWords * kWordsBytes;
  }
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * b.acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

}  // namespace

void wint8_expand(const uint8_t* w, int64_t k, bf16* out) { expand<Format>(w, k, out); }
void wint8_f32(const QuantizedBlock& b) { multiply_f32<Format>(b); }
void wint8_bf16(const QuantizedBlock& b) { multiply_bf16<Format>(b); }

void wint8_int8(const Wint8ActivationBlock& b) {
  // A single row takes one panel at a time: few instructions, and the memory in one run.
  if (b.w_end != nullptr)
    for_each_tile<kInt8TilePanels, 1>(b.rows, b.panels,
                                      [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
                                        int8_tile<ROWS, PANELS, Ahead<PANELS>>(b, row, panel);
                                      });
  else
    for_each_tile<kInt8TilePanels, 1>(b.rows, b.panels,
                                      [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
                                        int8_tile<ROWS, PANELS, NothingAhead>(b, row, panel);
                                      });
}

void scale_columns(float* acc, const float* scale, int64_t n) {
  for_each_register(n, [&](int64_t i, int64_t m) {
    store_n(acc + i, mul(load_n(acc + i, m), load_n(scale + i, m)), m);
  });
}

}  // namespace ernie::cpu::ERNIE_ISA
