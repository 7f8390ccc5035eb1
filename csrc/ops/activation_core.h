// What activations are called where they are an option, and the arithmetic of the exact GELU that
// both backends and every CPU tier share.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ernie {

// Applied by a linear layer to its sums.
enum class Activation : uint8_t { kNone, kGelu, kQuickGelu };

// With t = |x| and Q(t) = erfc(t / sqrt(2)) / 2, gelu(x) = max(x, 0) - t Q(t): nothing cancels
// below zero, where x (1 + erf(x / sqrt(2))) / 2 would. And
//
//   Q(t) = e^(-t^2 / 2) p(s) / (t + 3),   s = (t - 3) / (t + 3)
//
// where p is the polynomial of least relative error, 2^-25, for t up to 15.5. Beyond 14.3 float32
// holds no t Q(t); kGeluFar is where e^(-t^2 / 4) is no longer distinct from zero.
inline constexpr float kGeluCenter = 3.f;
inline constexpr float kGeluFar = 24.f;
inline constexpr int kGeluDegree = 9;

struct GeluPolynomial {
  float term[kGeluDegree + 1];  // of s^0, s^1, ...
};
// A function: device code knows no array of this scope, but what a constant of its own holds.
ERNIE_HOST_DEVICE constexpr GeluPolynomial gelu_polynomial() {
  return {{0.7290837168693542f, -0.5093321800231934f, 0.2300175577402115f, -0.04725787043571472f,
           -0.010460611432790756f, 0.006936382036656141f, 0.00101007882039994f,
           -0.0009478521533310413f, -0.0001952614402398467f, 5.700466499547474e-05f}};
}

// The slope of the sigmoid in quick_gelu(x) = x sigmoid(1.702 x).
inline constexpr float kQuickGeluSlope = 1.702f;

}  // namespace ernie
