// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/wint4.isa.h"

#include "cpu/quantized_tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// Where column I stands in its 32 bits.
constexpr int shift_of(int i) { return (i % 2 != 0 ? 16 : 0) + 4 * (i / 2); }

struct Format {
  static constexpr int kWordK = 8;

#if defined(__AVX512F__)

  // Both permutations look at the lowest bits of a lane alone, four and five of them: no mask.
  template <int I>
  static inline F32 column(Words words) {
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(words, shift_of(I)), values)};
  }

  template <int P>
  static inline Pairs pairs(Words words) {
    // The bfloat16 values of 0 to 7 and -8 to -1, twice: the fifth bit is the next weight's first.
    const __m512i values = _mm512_setr_epi32(
        0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, static_cast<int>(0xc0e0c100),
        static_cast<int>(0xc0a0c0c0), static_cast<int>(0xc040c080), static_cast<int>(0xbf80c000),
        0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, static_cast<int>(0xc0e0c100),
        static_cast<int>(0xc0a0c0c0), static_cast<int>(0xc040c080), static_cast<int>(0xbf80c000));
    return _mm512_permutexvar_epi16(_mm512_srli_epi32(words, 4 * P), values);
  }

#else

#if defined(__AVX2__)
  template <int I>
  static inline F32 column(Words words) {
    const __m256i top = _mm256_slli_epi32(words, 28 - shift_of(I));
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28))};
  }
#else
  template <int I>
  static inline F32 column(const Words& words) {
    F32 r;
    for (int n = 0; n < F32::kWidth; ++n)
      r.v[n] = static_cast<float>(value(reinterpret_cast<const uint8_t*>(words.v) + 4 * n, I));
    return r;
  }
#endif

  template <int P>
  static inline Pairs pairs(const Words& words) {
    return pairs_of(column<2 * P>(words), column<2 * P + 1>(words));
  }

#endif

  static inline int value(const uint8_t* w, int i) {
    uint32_t word;
    memcpy(&word, w, sizeof word);
    return static_cast<int32_t>(word << (28 - shift_of(i))) >> 28;
  }

  template <class X, int ROWS, int NV>
  static inline void add_word(F32 (&acc)[ROWS][NV], const X* x, int64_t x_stride, const uint8_t* w,
                              int64_t w_stride) {
    add_pair<Format, 0>(acc, x, x_stride, w, w_stride);
    add_pair<Format, 1>(acc, x, x_stride, w, w_stride);
    add_pair<Format, 2>(acc, x, x_stride, w, w_stride);
    add_pair<Format, 3>(acc, x, x_stride, w, w_stride);
  }
};

}  // namespace

void wint4_expand(const uint8_t* w, int64_t k, bf16* out) { expand<Format>(w, k, out); }
void wint4_f32(const QuantizedBlock& b) { multiply_f32<Format>(b); }
void wint4_bf16(const QuantizedBlock& b) { multiply_bf16<Format>(b); }

}  // namespace ernie::cpu::ERNIE_ISA
