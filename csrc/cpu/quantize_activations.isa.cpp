// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/quantize_activations.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr float kMaxInt8 = 127.f;
constexpr float kMaxFloat = 3.40282347e38f;

constexpr int64_t kVectors = kActivationGroup / F32::kWidth;

// largest_magnitude(values)       of one group; NaN if NaN or infinity is among them
// store_int8(out, values, factor) rounds values * factor to int8 and returns their sum

#if defined(__AVX512F__)

inline float largest_magnitude(const F32 (&values)[kVectors]) {
  // As bits, magnitudes are ordered as integers are, with infinity and NaN last.
  __m512i largest = _mm512_setzero_si512();
  for (int64_t v = 0; v < kVectors; ++v)
    largest = _mm512_max_epu32(
        largest, _mm512_and_si512(_mm512_castps_si512(values[v].v), _mm512_set1_epi32(0x7fffffff)));
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float result;
  memcpy(&result, &bits, sizeof result);
  return result <= kMaxFloat ? result : NAN;
}

inline int32_t store_int8(int8_t* out, const F32 (&values)[kVectors], float factor) {
  static_assert(kVectors == 4, "one register of int8");
  __m512i whole[kVectors];
  for (int64_t v = 0; v < kVectors; ++v)
    whole[v] = _mm512_cvtps_epi32(mul(values[v], set(factor)).v);
  const __m512i in_lanes = _mm512_packs_epi16(_mm512_packs_epi32(whole[0], whole[1]),
                                              _mm512_packs_epi32(whole[2], whole[3]));
  // Packing goes by quarters of the register: each now holds four values of every source.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, in_lanes));
  return _mm512_reduce_add_epi32(
      _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), in_lanes));
}

#else

inline float largest_magnitude(const F32 (&values)[kVectors]) {
  F32 largest = set(0.f), poison = set(0.f);
  for (int64_t v = 0; v < kVectors; ++v) {
    largest = max(max(values[v], sub(set(0.f), values[v])), largest);
    poison = fma(values[v], set(0.f), poison);  // NaN times zero is NaN, and so is infinity
  }
  return sum(poison) == 0.f ? max_of(largest) : NAN;
}

inline int32_t store_int8(int8_t* out, const F32 (&values)[kVectors], float factor) {
  float rounded[kActivationGroup];
  for (int64_t v = 0; v < kVectors; ++v)
    store(rounded + v * F32::kWidth, round(mul(values[v], set(factor))));
  int32_t total = 0;
  for (int64_t i = 0; i < kActivationGroup; ++i) {
    const int32_t value = static_cast<int32_t>(rounded[i]);
    out[i] = static_cast<int8_t>(value);
    total += value;
  }
  return total;
}

#endif

// x: one whole group.
template <class T>
inline void quantize_group(const T* x, int8_t* quantized, float* scale, int32_t* sum) {
  F32 values[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) values[v] = load(x + v * F32::kWidth);
  const float max_abs = largest_magnitude(values), factor = kMaxInt8 / max_abs;
  *scale = max_abs / kMaxInt8;
  if (!(factor <= kMaxFloat)) [[unlikely]] {  // of zeros, of nearly zeros, and of NaN
    memset(quantized, 0, kActivationGroup);
    *sum = 0;
    return;
  }
  *sum = store_int8(quantized, values, factor);
}

template <class T>
inline void quantize_activations_row_t(const T* x, int64_t n, int8_t* quantized, float* scale,
                                       int32_t* sum) {
  for (int64_t k = 0; k < n; k += kActivationGroup, quantized += kActivationGroup, ++scale, ++sum) {
    const int64_t count = n - k;
    if (count >= kActivationGroup) {
      quantize_group(x + k, quantized, scale, sum);
      continue;
    }
    T rest[kActivationGroup] = {};
    memcpy(rest, x + k, count * sizeof(T));
    quantize_group(rest, quantized, scale, sum);
  }
}

}  // namespace

void quantize_activations_row(const float* x, int64_t n, int8_t* quantized, float* scale,
                              int32_t* sum) {
  quantize_activations_row_t(x, n, quantized, scale, sum);
}
void quantize_activations_row(const bf16* x, int64_t n, int8_t* quantized, float* scale,
                              int32_t* sum) {
  quantize_activations_row_t(x, n, quantized, scale, sum);
}

}  // namespace ernie::cpu::ERNIE_ISA
