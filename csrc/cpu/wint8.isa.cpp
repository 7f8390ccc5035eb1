// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/wint8.isa.h"

#include "cpu/ahead.isa.h"
#include "cpu/quantize_activations.isa.h"
#include "cpu/tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr int64_t kQuadBytes = 4 * kPanelRows;  // four k of one panel

// --------------------------------------------------------------- int8 to float32 and bfloat16
//
// Quads: a register of weights, four k of kWidth outputs.
//   column<I>(quads)  the k of index I as float32
//   pairs<H>(quads)   the k of indices 2H and 2H + 1 as bfloat16; every int8 is exact

#if defined(__AVX512F__)

using Quads = __m512i;
using Pairs = __m512i;
inline Quads load_quads(const int8_t* w) { return _mm512_loadu_si512(w); }

template <int I>
inline F32 column(Quads quads) {
  // A dot product with 1 in one place: the byte, its sign extended, by one instruction.
  const __m512i one = _mm512_set1_epi32(1 << 8 * I);
  return {_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), one, quads))};
}

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

template <int H>
inline Pairs pairs(Quads quads) {
  // A look-up takes seven bits: the magnitude 128 finds the bytes of 0, of which the low one is its
  // own and the high one is put right.
  const __m512i magnitude = _mm512_abs_epi8(quads);
  const __m512i low = look_up(kBf16Bytes.low, magnitude);
  constexpr int kOrOfAnd = 0xf8;  // a | (b & c)
  const __m512i high = _mm512_mask_mov_epi8(
      _mm512_ternarylogic_epi32(look_up(kBf16Bytes.high, magnitude), quads,
                                _mm512_set1_epi8(static_cast<char>(0x80)), kOrOfAnd),
      _mm512_movepi8_mask(magnitude), _mm512_set1_epi8(static_cast<char>(0xc3)));
  return _mm512_permutex2var_epi8(
      low, _mm512_load_si512(H == 0 ? kBf16Bytes.first_pairs : kBf16Bytes.second_pairs), high);
}

inline void store_pairs(bf16* out, Pairs p) { _mm512_storeu_si512(out, p); }

#elif defined(__AVX2__)

using Quads = __m256i;
using Pairs = __m256i;
inline Quads load_quads(const int8_t* w) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
}

template <int I>
inline F32 column(Quads quads) {
  const __m256i top = I == 3 ? quads : _mm256_slli_epi32(quads, 24 - 8 * I);
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24))};
}

template <int H>
inline Pairs pairs(Quads quads) {
  const __m256i first = _mm256_castps_si256(column<2 * H>(quads).v);
  const __m256i second = _mm256_castps_si256(column<2 * H + 1>(quads).v);
  return _mm256_blend_epi16(_mm256_srli_epi32(first, 16), second, 0xaa);
}

inline void store_pairs(bf16* out, Pairs p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), p);
}

#else

struct Quads {
  int8_t v[4 * F32::kWidth];
};
struct Pairs {
  bf16 v[2 * F32::kWidth];
};
inline Quads load_quads(const int8_t* w) {
  Quads quads;
  memcpy(quads.v, w, sizeof quads.v);
  return quads;
}

template <int I>
inline F32 column(const Quads& quads) {
  F32 r;
  for (int n = 0; n < F32::kWidth; ++n) r.v[n] = quads.v[4 * n + I];
  return r;
}

template <int H>
inline Pairs pairs(const Quads& quads) {
  Pairs p;
  for (int n = 0; n < F32::kWidth; ++n)
    for (int i = 0; i < 2; ++i) p.v[2 * n + i] = to_bf16(quads.v[4 * n + 2 * H + i]);
  return p;
}

inline void store_pairs(bf16* out, const Pairs& p) { memcpy(out, p.v, sizeof p.v); }

#endif

// Register v of a tile's weights.
inline Quads quads_of(const int8_t* w, int64_t w_stride, int v) {
  return load_quads(w + v / kVectors * w_stride + v % kVectors * 4 * F32::kWidth);
}

// ----------------------------------------------------------------------- products with float x

// One k against ROWS broadcast values.
template <int I, int ROWS, int NV>
inline void step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const int8_t* w,
                 int64_t w_stride) {
  if constexpr (ROWS == 1) {
    // Each weight is used at once: AVX2 has no register to keep eight of them in.
    const F32 value = set(x[I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[0][v] =
        fma(value, column<I>(quads_of(w, w_stride, v)), acc[0][v]);
    return;
  }
  F32 weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] = column<I>(quads_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const F32 value = set(x[r * x_stride + I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
  }
}

// The first two k of four, and the last two if there are.
template <int PAIRS, int ROWS, int NV>
inline void quad_step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const int8_t* w,
                      int64_t w_stride) {
  step<0>(acc, x, x_stride, w, w_stride);
  step<1>(acc, x, x_stride, w, w_stride);
  if constexpr (PAIRS == 1) return;
  step<2>(acc, x, x_stride, w, w_stride);
  step<3>(acc, x, x_stride, w, w_stride);
}

#if defined(__AVX512BF16__)
template <int H>
inline void pair_step(F32& acc, Pairs weights, const bf16* x) {
  int32_t bits;
  memcpy(&bits, x + 2 * H, sizeof bits);
  acc.v = _mm512_dpbf16_ps(acc.v, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(bits));
}

template <int PAIRS, int ROWS, int NV>
inline void quad_step(F32 (&acc)[ROWS][NV], const bf16* x, int64_t x_stride, const int8_t* w,
                      int64_t w_stride) {
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) {
    const Quads quads = quads_of(w, w_stride, v);
    const Pairs first = pairs<0>(quads), second = pairs<1>(quads);
    ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
      pair_step<0>(acc[r][v], first, x + r * x_stride);
      if constexpr (PAIRS == 2) pair_step<1>(acc[r][v], second, x + r * x_stride);
    }
  }
}
#endif

template <int ROWS, int PANELS, class X>
inline void stream_tile(const Wint8Block& b, int64_t row, int64_t panel) {
  constexpr int NV = PANELS * static_cast<int>(kVectors);
  const X* x = static_cast<const X*>(b.x) + row * b.x_stride;
  const int8_t* w = b.w + panel * b.w_stride;
  Ahead<PANELS> ahead(w, b.w_stride, b.w_end);
  const int64_t x_stride = b.x_stride, w_stride = b.w_stride;
  F32 acc[ROWS][NV];
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = set(0.f);
  }
  for (int64_t quads = b.k / 4; quads > 0; --quads, x += 4, w += kQuadBytes) {
    ahead.next_line();
    quad_step<2>(acc, x, x_stride, w, w_stride);
  }
  if (b.k % 4 != 0) quad_step<1>(acc, x, x_stride, w, w_stride);
  float* out = b.acc + row * b.acc_stride + panel * kPanelRows;
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * b.acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

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
inline Weights ready(Quads quads) {
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
inline Weights ready(Quads quads) { return {quads, _mm256_abs_epi8(quads)}; }
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
using Weights = Quads;
inline const Weights& ready(const Quads& quads) { return quads; }
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
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weights[v] = ready(quads_of(w, w_stride, v));
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
  for (; quads >= 4; quads -= 4, x += 16, w += 4 * kQuadBytes) {
    ERNIE_UNROLL for (int q = 0; q < 4; ++q) {
      ahead.next_line();
      dot_step(sums, x + 4 * q, x_stride, w + q * kQuadBytes, w_stride);
    }
  }
  for (; quads > 0; --quads, x += 4, w += kQuadBytes) {
    ahead.next_line();
    dot_step(sums, x, x_stride, w, w_stride);
  }
}

#if defined(__AVX512F__)
// A single row of one panel. Four chains of sums, exact in any order, keep up with the memory.
template <class A>
inline void sum_group(I32 (&sums)[1][1], const int8_t* x, int64_t, const int8_t* w, int64_t,
                      int64_t quads, A& ahead) {
  constexpr int kGroupQuads = kActivationGroup / 4, kChains = 4;
  I32 chains[kChains] = {sums[0][0], first_sums(0), first_sums(0), first_sums(0)};
  const auto add_quad = [&](I32& chain, int64_t q) {
    int32_t values;
    memcpy(&values, x + 4 * q, sizeof values);
    dot(chain, ready(load_quads(w + q * kQuadBytes)), values);
    ahead.next_line();
  };
  if (quads == kGroupQuads) [[likely]] {
    ERNIE_UNROLL for (int q = 0; q < kGroupQuads; ++q) add_quad(chains[q % kChains], q);
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
  constexpr int64_t kGroupQuads = kActivationGroup / 4;
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
  for (int64_t left = b.quads; left > 0; left -= kGroupQuads) {
    I32 sums[ROWS][NV];
    ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
      ERNIE_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = first_sums(x_sum[r * b.row_groups]);
    }
    sum_group(sums, x, x_stride, w, b.w_stride, left < kGroupQuads ? left : kGroupQuads, ahead);
    ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
      const F32 scale = set(x_scale[r * b.row_groups]);
      ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] =
          fused(scale, to_f32(sums[r][v]), acc[r][v]);
    }
    x += kActivationGroup;
    x_scale += 1;
    x_sum += 1;
    w += kGroupQuads * kQuadBytes;
  }
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * b.acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

}  // namespace

void wint8_expand(const int8_t* w, int64_t k, bf16* out) {
  for (int64_t c = 0; c < k; c += 4, w += kQuadBytes)
    for (int v = 0; v < kVectors; ++v) {
      const Quads quads = load_quads(w + v * 4 * F32::kWidth);
      bf16* to = out + c * kPanelRows + v * 2 * F32::kWidth;
      store_pairs(to, pairs<0>(quads));
      if (c + 4 <= k) store_pairs(to + 2 * kPanelRows, pairs<1>(quads));
    }
}

void wint8_f32(const Wint8Block& b) {
  const FlushDenormals scope;
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<ROWS, PANELS, float>(b, row, panel);
  });
}

void wint8_bf16(const Wint8Block& b) {
#if defined(__AVX512BF16__)
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<ROWS, PANELS, bf16>(b, row, panel);
  });
#else
  // As gemm_bf16_bf16: plain loops, since no machine of this tier is asked.
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t n = 0; n < b.panels * kPanelRows; ++n) {
      const int8_t* w = b.w + n / kPanelRows * b.w_stride + n % kPanelRows * 4;
      float sum = 0.f;
      for (int64_t k = 0; k < b.k; ++k)
        sum += to_float(static_cast<const bf16*>(b.x)[r * b.x_stride + k]) *
               static_cast<float>(w[k / 4 * kQuadBytes + k % 4]);
      b.acc[r * b.acc_stride + n] = sum;
    }
#endif
}

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
