// Compiled once per CPU tier; see core/isa.h. No std::, no allocation, no TensorView in here.
#include "cpu/quantize_activations.isa.h"

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

constexpr float kMaxInt8 = 127.f;
constexpr float kMaxFloat = 3.40282347e38f;

// x: one whole group.
template <class T>
inline void quantize_group(const T* x, int8_t* quantized, float* scale, int32_t* sum) {
  constexpr int64_t kVectors = kActivationGroup / F32::kWidth;
  F32 values[kVectors];
  F32 largest = set(0.f), poison = set(0.f);
  for (int64_t v = 0; v < kVectors; ++v) {
    values[v] = load(x + v * F32::kWidth);
    largest = max(max(values[v], sub(set(0.f), values[v])), largest);
    poison = fma(values[v], set(0.f), poison);  // NaN times zero is NaN, and so is infinity
  }
  const float max_abs = max_of(largest), factor = kMaxInt8 / max_abs;
  const float poisoned = ::ernie::cpu::ERNIE_ISA::sum(poison);
  const bool is_zero = !(poisoned == 0.f) || factor > kMaxFloat;
  *scale = poisoned == 0.f ? max_abs / kMaxInt8 : poisoned;
  float rounded[kActivationGroup];
  for (int64_t v = 0; v < kVectors; ++v)
    store(rounded + v * F32::kWidth, is_zero ? set(0.f) : round(mul(values[v], set(factor))));
  int32_t total = 0;
  for (int64_t i = 0; i < kActivationGroup; ++i) {
    const int32_t value = static_cast<int32_t>(rounded[i]);
    quantized[i] = static_cast<int8_t>(value);
    total += value;
  }
  *sum = total;
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
