// Activations of a float, for every kernel that applies one: what cpu/activation_functions.isa.h
// does with a register. Divisors are from 1 to 27, where __fdividef is within 2 ulp; the exact
// division has a call in it, at which wgmma in flight would have to end.
#pragma once

#include <cuda_runtime.h>

#include "ops/activation_core.h"

namespace ernie::cuda {

// x / (1 + e^-v), v of the sign of x, and x e^v / (1 + e^v) below zero, where e^-v would overflow.
// With h = e^(-|v|/2) the product x h h is rounded to a denormal once, at the end.
__device__ __forceinline__ float times_sigmoid(float x, float v) {
  const float h = expf(-0.5f * fabsf(v));
  return __fdividef(x < 0.f ? x * h * h : x, fmaf(h, h, 1.f));
}

__device__ __forceinline__ float silu(float x) { return times_sigmoid(x, x); }

__device__ __forceinline__ float quick_gelu(float x) {
  return times_sigmoid(x, kQuickGeluSlope * x);
}

// ops/activation_core.h tells how. fminf would take a NaN for kGeluFar, but max(x, 0) below is NaN
// then.
__device__ __forceinline__ float gelu(float x) {
  const float t = fminf(fabsf(x), kGeluFar);
  const float r = __fdividef(1.f, t + kGeluCenter);
  const float s = (t - kGeluCenter) * r;
  constexpr GeluPolynomial kPolynomial = gelu_polynomial();
  float p = kPolynomial.term[kGeluDegree];
#pragma unroll
  for (int i = kGeluDegree - 1; i >= 0; --i) p = fmaf(p, s, kPolynomial.term[i]);
  const float root = expf(-0.25f * (t * t));
  const float part = (x < -t ? x : -t) * (p * r) * root;  // -infinity times zero is NaN
  return fmaf(part, root, x < 0.f ? 0.f : x);
}

__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kGelu:
      return gelu(x);
    case Activation::kQuickGelu:
      return quick_gelu(x);
    default:
      return x;
  }
}

}  // namespace ernie::cuda
