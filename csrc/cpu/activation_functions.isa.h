// Activations of a register, for the activation family and for what is fused with them. Only
// *.isa.cpp files may include it, as simd.isa.h.
#pragma once

#include "cpu/simd.isa.h"
#include "ops/activation_core.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// x / (1 + e^-v), v of the sign of x: for v >= 0, and x e^v / (1 + e^v) below, where e^-v would
// overflow. With h = e^(-|v|/2) the product x h h is rounded to a denormal once, at the end. An
// infinity or NaN gives what the formula of the header gives: NaN for -infinity.
inline F32 times_sigmoid(F32 x, F32 v) {
  const F32 zero = set(0.f);
  const F32 h = exp(mul(min(sub(zero, v), v), set(0.5f)));
  const F32 numerator = add(mul(mul(min(zero, x), h), h), max(zero, x));
  return div(numerator, fma(h, h, set(1.f)));
}

inline F32 silu(F32 x) { return times_sigmoid(x, x); }

inline F32 quick_gelu(F32 x) { return times_sigmoid(x, mul(x, set(kQuickGeluSlope))); }

// ops/activation_core.h tells how. max(x, 0) - t Q(t) loses nothing to +infinity, as t ends at
// kGeluFar there; -infinity times the zero of Q is NaN. e^(-t^2 / 4) is multiplied twice, so that
// the result is rounded to a denormal once.
inline F32 gelu(F32 x) {
  const F32 zero = set(0.f);
  const F32 t = min(set(kGeluFar), max(sub(zero, x), x));
  const F32 r = div(set(1.f), add(t, set(kGeluCenter)));
  const F32 s = mul(sub(t, set(kGeluCenter)), r);
  constexpr GeluPolynomial kPolynomial = gelu_polynomial();
  F32 p = set(kPolynomial.term[kGeluDegree]);
  for (int i = kGeluDegree - 1; i >= 0; --i) p = fma(p, s, set(kPolynomial.term[i]));
  const F32 root = exp(mul(mul(t, t), set(-0.25f)));
  const F32 part = mul(mul(min(sub(zero, t), x), mul(p, r)), root);
  return fma(part, root, max(zero, x));
}

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
