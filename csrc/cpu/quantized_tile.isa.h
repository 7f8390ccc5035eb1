// Register tiles of float x times quantized weights that are widened on the way. Only *.isa.cpp
// files may include it, as simd.isa.h.
//
// A word is 4 bytes: kWordK consecutive k of one output. What the words of a weight are, its Format
// says:
//
//   kWordK                             4 or 8
//   column<I>(words)                   of kWidth words, the k of index I as float32
//   pairs<P>(words)                    the k of indices 2P and 2P + 1 as bfloat16
//   value(w, i)                        the k of index i of the word at w
//   add_word(acc, x, x_stride, w, ..)  products of one word of every output: calls add_pair<P>
#pragma once

#include "cpu/ahead.isa.h"
#include "cpu/quantized_block.isa.h"
#include "cpu/tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr int64_t kWordsBytes = 4 * kPanelRows;  // a word of each output of a panel

// Words: a register of them, for kWidth outputs. Pairs: two bfloat16 for each.
#if defined(__AVX512F__)

using Words = __m512i;
using Pairs = __m512i;
inline Words load_words(const void* w) { return _mm512_loadu_si512(w); }
inline void store_pairs(bf16* out, Pairs p) { _mm512_storeu_si512(out, p); }

#elif defined(__AVX2__)

using Words = __m256i;
using Pairs = __m256i;
inline Words load_words(const void* w) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(w));
}
inline void store_pairs(bf16* out, Pairs p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), p);
}

// Of numbers that bfloat16 holds.
inline Pairs pairs_of(F32 first, F32 second) {
  return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(first.v), 16),
                            _mm256_castps_si256(second.v), 0xaa);
}

#else

struct Words {
  int8_t v[4 * F32::kWidth];
};
struct Pairs {
  bf16 v[2 * F32::kWidth];
};
inline Words load_words(const void* w) {
  Words words;
  memcpy(words.v, w, sizeof words.v);
  return words;
}
inline void store_pairs(bf16* out, const Pairs& p) { memcpy(out, p.v, sizeof p.v); }

inline Pairs pairs_of(const F32& first, const F32& second) {
  Pairs p;
  for (int n = 0; n < F32::kWidth; ++n) {
    p.v[2 * n] = to_bf16(first.v[n]);
    p.v[2 * n + 1] = to_bf16(second.v[n]);
  }
  return p;
}

#endif

// Register v of a tile's weights.
inline Words words_of(const void* w, int64_t w_stride, int v) {
  const int64_t at = v / kVectors * w_stride + v % kVectors * 4 * F32::kWidth;
  return load_words(static_cast<const uint8_t*>(w) + at);
}

// One k against ROWS broadcast values. Words are loaded anew for every column: they come from L1,
// and beside the sums there is no register to keep them in.
template <class Format, int I, int ROWS, int NV>
inline void add_column(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const uint8_t* w,
                       int64_t w_stride) {
  if constexpr (ROWS == 1) {
    // Each weight is used at once: AVX2 has no register to keep eight of them in.
    const F32 value = set(x[I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[0][v] =
        fma(value, Format::template column<I>(words_of(w, w_stride, v)), acc[0][v]);
    return;
  }
  F32 weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      Format::template column<I>(words_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const F32 value = set(x[r * x_stride + I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
  }
}

// Two k.
template <class Format, int P, int ROWS, int NV>
inline void add_pair(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const uint8_t* w,
                     int64_t w_stride) {
  add_column<Format, 2 * P>(acc, x, x_stride, w, w_stride);
  add_column<Format, 2 * P + 1>(acc, x, x_stride, w, w_stride);
}

#if defined(__AVX512BF16__)
// Two k of x, for every output.
inline __m512bh broadcast_pair(const bf16* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}

template <class Format, int P, int ROWS, int NV>
inline void add_pair(F32 (&acc)[ROWS][NV], const bf16* x, int64_t x_stride, const uint8_t* w,
                     int64_t w_stride) {
  __m512bh weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      (__m512bh)Format::template pairs<P>(words_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const __m512bh value = broadcast_pair(x + r * x_stride + 2 * P);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v].v =
        _mm512_dpbf16_ps(acc[r][v].v, weight[v], value);
  }
}
#endif

template <class Format, int ROWS, int PANELS, class X>
inline void stream_tile(const QuantizedBlock& b, int64_t row, int64_t panel) {
  constexpr int NV = PANELS * static_cast<int>(kVectors), kWordK = Format::kWordK;
  const X* x = static_cast<const X*>(b.x) + row * b.x_stride;
  const uint8_t* w = b.w + panel * b.w_stride;
  Ahead<PANELS> ahead(w, b.w_stride, b.w_end);
  const int64_t x_stride = b.x_stride, w_stride = b.w_stride;
  F32 acc[ROWS][NV];
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = set(0.f);
  }
  for (int64_t words = b.k / kWordK; words > 0; --words, x += kWordK, w += kWordsBytes) {
    ahead.next_line();
    Format::add_word(acc, x, x_stride, w, w_stride);
  }
  const int64_t left = b.k % kWordK;
  if (left > 0) add_pair<Format, 0>(acc, x, x_stride, w, w_stride);
  if constexpr (kWordK == 8) {
    if (left > 2) add_pair<Format, 1>(acc, x, x_stride, w, w_stride);
    if (left > 4) add_pair<Format, 2>(acc, x, x_stride, w, w_stride);
  }
  float* out = b.acc + row * b.acc_stride + panel * kPanelRows;
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * b.acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

template <class Format>
inline void multiply_f32(const QuantizedBlock& b) {
  const FlushDenormals scope;
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<Format, ROWS, PANELS, float>(b, row, panel);
  });
}

template <class Format>
inline void multiply_bf16(const QuantizedBlock& b) {
#if defined(__AVX512BF16__)
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<Format, ROWS, PANELS, bf16>(b, row, panel);
  });
#else
  // As gemm_bf16_bf16: plain loops, since no machine of this tier is asked.
  constexpr int kWordK = Format::kWordK;
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t n = 0; n < b.panels * kPanelRows; ++n) {
      const uint8_t* w = b.w + n / kPanelRows * b.w_stride + n % kPanelRows * 4;
      const bf16* x = static_cast<const bf16*>(b.x) + r * b.x_stride;
      float sum = 0.f;
      for (int64_t k = 0; k < b.k; ++k) {
        const int value = Format::value(w + k / kWordK * kWordsBytes, static_cast<int>(k % kWordK));
        sum += to_float(x[k]) * static_cast<float>(value);
      }
      b.acc[r * b.acc_stride + n] = sum;
    }
#endif
}

// k columns of one panel, beginning at a whole word, as a panel of bfloat16 pairs; k even.
template <class Format>
inline void expand(const uint8_t* w, int64_t k, bf16* out) {
  for (int64_t c = 0; c < k; c += Format::kWordK, w += kWordsBytes)
    for (int v = 0; v < kVectors; ++v) {
      const Words words = load_words(w + v * 4 * F32::kWidth);
      bf16* to = out + c * kPanelRows + v * 2 * F32::kWidth;
      store_pairs(to, Format::template pairs<0>(words));
      if (c + 2 < k) store_pairs(to + 2 * kPanelRows, Format::template pairs<1>(words));
      if constexpr (Format::kWordK == 8) {
        if (c + 4 < k) store_pairs(to + 4 * kPanelRows, Format::template pairs<2>(words));
        if (c + 6 < k) store_pairs(to + 6 * kPanelRows, Format::template pairs<3>(words));
      }
    }
}

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
