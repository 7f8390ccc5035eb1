// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/wint4.isa.h"

#include "cpu/ahead.isa.h"
#include "cpu/tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr int64_t kOctetBytes = 4 * kPanelRows;  // eight k of one panel

// ------------------------------------------------------------------ 4 bits to float32 and bfloat16
//
// Octets: a register of weights, eight k of kWidth outputs.
//   column<I>(octets)  the k of index I as float32
//   pairs<P>(octets)   the k of indices 2P and 2P + 1 as bfloat16

// Where column I stands in its 32 bits.
constexpr int shift_of(int i) { return (i % 2 != 0 ? 16 : 0) + 4 * (i / 2); }

#if defined(__AVX512F__)

using Octets = __m512i;
using Pairs = __m512i;
inline Octets load_octets(const uint8_t* w) { return _mm512_loadu_si512(w); }

// Both permutations look at the lowest bits of a lane alone, four and five of them: no mask.
template <int I>
inline F32 column(Octets octets) {
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(octets, shift_of(I)), values)};
}

template <int P>
inline Pairs pairs(Octets octets) {
  // The bfloat16 values of 0 to 7 and -8 to -1, twice: the fifth bit is the next weight's first.
  const __m512i values = _mm512_setr_epi32(
      0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, static_cast<int>(0xc0e0c100),
      static_cast<int>(0xc0a0c0c0), static_cast<int>(0xc040c080), static_cast<int>(0xbf80c000),
      0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, static_cast<int>(0xc0e0c100),
      static_cast<int>(0xc0a0c0c0), static_cast<int>(0xc040c080), static_cast<int>(0xbf80c000));
  return _mm512_permutexvar_epi16(_mm512_srli_epi32(octets, 4 * P), values);
}

inline void store_pairs(bf16* out, Pairs p) { _mm512_storeu_si512(out, p); }

#elif defined(__AVX2__)

using Octets = __m256i;
using Pairs = __m256i;
inline Octets load_octets(const uint8_t* w) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
}

template <int I>
inline F32 column(Octets octets) {
  const __m256i top = _mm256_slli_epi32(octets, 28 - shift_of(I));
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28))};
}

template <int P>
inline Pairs pairs(Octets octets) {
  const __m256i first = _mm256_castps_si256(column<2 * P>(octets).v);
  const __m256i second = _mm256_castps_si256(column<2 * P + 1>(octets).v);
  return _mm256_blend_epi16(_mm256_srli_epi32(first, 16), second, 0xaa);
}

inline void store_pairs(bf16* out, Pairs p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), p);
}

#else

struct Octets {
  uint32_t v[F32::kWidth];
};
struct Pairs {
  bf16 v[2 * F32::kWidth];
};
inline Octets load_octets(const uint8_t* w) {
  Octets octets;
  memcpy(octets.v, w, sizeof octets.v);
  return octets;
}

template <int I>
inline F32 column(const Octets& octets) {
  F32 r;
  for (int n = 0; n < F32::kWidth; ++n)
    r.v[n] = static_cast<float>(static_cast<int32_t>(octets.v[n] << (28 - shift_of(I))) >> 28);
  return r;
}

template <int P>
inline Pairs pairs(const Octets& octets) {
  const F32 first = column<2 * P>(octets), second = column<2 * P + 1>(octets);
  Pairs p;
  for (int n = 0; n < F32::kWidth; ++n) {
    p.v[2 * n] = to_bf16(first.v[n]);
    p.v[2 * n + 1] = to_bf16(second.v[n]);
  }
  return p;
}

inline void store_pairs(bf16* out, const Pairs& p) { memcpy(out, p.v, sizeof p.v); }

#endif

// Register v of a tile's weights.
inline Octets octets_of(const uint8_t* w, int64_t w_stride, int v) {
  return load_octets(w + v / kVectors * w_stride + v % kVectors * 4 * F32::kWidth);
}

// --------------------------------------------------------------------------------------- products
//
// Octets are loaded anew for every pair of columns: they come from L1, and beside the sums there is
// no register to keep them in.

// One k against ROWS broadcast values.
template <int I, int ROWS, int NV>
inline void step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const uint8_t* w,
                 int64_t w_stride) {
  if constexpr (ROWS == 1) {
    const F32 value = set(x[I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[0][v] =
        fma(value, column<I>(octets_of(w, w_stride, v)), acc[0][v]);
    return;
  }
  F32 weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] = column<I>(octets_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    const F32 value = set(x[r * x_stride + I]);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = fma(value, weight[v], acc[r][v]);
  }
}

// Two k.
template <int P, int ROWS, int NV>
inline void pair_step(F32 (&acc)[ROWS][NV], const float* x, int64_t x_stride, const uint8_t* w,
                      int64_t w_stride) {
  step<2 * P>(acc, x, x_stride, w, w_stride);
  step<2 * P + 1>(acc, x, x_stride, w, w_stride);
}

#if defined(__AVX512BF16__)
template <int P, int ROWS, int NV>
inline void pair_step(F32 (&acc)[ROWS][NV], const bf16* x, int64_t x_stride, const uint8_t* w,
                      int64_t w_stride) {
  __m512bh weight[NV];
  ERNIE_UNROLL for (int v = 0; v < NV; ++v) weight[v] =
      (__m512bh)pairs<P>(octets_of(w, w_stride, v));
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    int32_t bits;
    memcpy(&bits, x + r * x_stride + 2 * P, sizeof bits);
    const __m512bh value = (__m512bh)_mm512_set1_epi32(bits);
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v].v =
        _mm512_dpbf16_ps(acc[r][v].v, weight[v], value);
  }
}
#endif

template <int ROWS, int PANELS, class X>
inline void stream_tile(const Wint4Block& b, int64_t row, int64_t panel) {
  constexpr int NV = PANELS * static_cast<int>(kVectors);
  const X* x = static_cast<const X*>(b.x) + row * b.x_stride;
  const uint8_t* w = b.w + panel * b.w_stride;
  Ahead<PANELS> ahead(w, b.w_stride, b.w_end);
  const int64_t x_stride = b.x_stride, w_stride = b.w_stride;
  F32 acc[ROWS][NV];
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = set(0.f);
  }
  for (int64_t octets = b.k / 8; octets > 0; --octets, x += 8, w += kOctetBytes) {
    ahead.next_line();
    pair_step<0>(acc, x, x_stride, w, w_stride);
    pair_step<1>(acc, x, x_stride, w, w_stride);
    pair_step<2>(acc, x, x_stride, w, w_stride);
    pair_step<3>(acc, x, x_stride, w, w_stride);
  }
  const int64_t left = b.k % 8;
  if (left > 0) pair_step<0>(acc, x, x_stride, w, w_stride);
  if (left > 2) pair_step<1>(acc, x, x_stride, w, w_stride);
  if (left > 4) pair_step<2>(acc, x, x_stride, w, w_stride);
  float* out = b.acc + row * b.acc_stride + panel * kPanelRows;
  ERNIE_UNROLL for (int r = 0; r < ROWS; ++r) {
    ERNIE_UNROLL for (int v = 0; v < NV; ++v)
        store(out + r * b.acc_stride + v * F32::kWidth, acc[r][v]);
  }
}

}  // namespace

void wint4_expand(const uint8_t* w, int64_t k, bf16* out) {
  for (int64_t c = 0; c < k; c += 8, w += kOctetBytes)
    for (int v = 0; v < kVectors; ++v) {
      const Octets octets = load_octets(w + v * 4 * F32::kWidth);
      bf16* to = out + c * kPanelRows + v * 2 * F32::kWidth;
      store_pairs(to, pairs<0>(octets));
      if (c + 2 < k) store_pairs(to + 2 * kPanelRows, pairs<1>(octets));
      if (c + 4 < k) store_pairs(to + 4 * kPanelRows, pairs<2>(octets));
      if (c + 6 < k) store_pairs(to + 6 * kPanelRows, pairs<3>(octets));
    }
}

void wint4_f32(const Wint4Block& b) {
  const FlushDenormals scope;
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<ROWS, PANELS, float>(b, row, panel);
  });
}

void wint4_bf16(const Wint4Block& b) {
#if defined(__AVX512BF16__)
  for_each_tile(b.rows, b.panels, [&]<int ROWS, int PANELS>(int64_t row, int64_t panel) {
    stream_tile<ROWS, PANELS, bf16>(b, row, panel);
  });
#else
  // As gemm_bf16_bf16: plain loops, since no machine of this tier is asked.
  for (int64_t r = 0; r < b.rows; ++r)
    for (int64_t n = 0; n < b.panels * kPanelRows; ++n) {
      const uint8_t* w = b.w + n / kPanelRows * b.w_stride + n % kPanelRows * 4;
      float sum = 0.f;
      for (int64_t k = 0; k < b.k; ++k) {
        uint32_t octet;
        memcpy(&octet, w + k / 8 * kOctetBytes, sizeof octet);
        const auto value =
            static_cast<int32_t>(octet << (28 - shift_of(static_cast<int>(k % 8)))) >> 28;
        sum +=
            to_float(static_cast<const bf16*>(b.x)[r * b.x_stride + k]) * static_cast<float>(value);
      }
      b.acc[r * b.acc_stride + n] = sum;
    }
#endif
}

}  // namespace ernie::cpu::ERNIE_ISA
