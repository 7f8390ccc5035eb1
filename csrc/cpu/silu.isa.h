// SiLU of a register, for the activation family and for what is fused with it. Only *.isa.cpp files
// may include it, as simd.isa.h.
#pragma once

#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// v / (1 + e^-v) for v >= 0, and v e^v / (1 + e^v) below, where e^-v would overflow. With
// h = e^(-|v|/2) the product v h h is rounded to a denormal once, at the end. An infinity or NaN
// gives what the formula of the header gives: silu(-inf) is NaN.
inline F32 silu(F32 v) {
  const F32 zero = set(0.f);
  const F32 h = exp(mul(min(sub(zero, v), v), set(0.5f)));
  const F32 numerator = add(mul(mul(min(zero, v), h), h), max(zero, v));
  return div(numerator, fma(h, h, set(1.f)));
}

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
