// SwiGLU's gate, for every kernel that applies it.
#pragma once

#include <cuda_runtime.h>

namespace ernie::cuda {

// v / (1 + e^-v), and v e^v / (1 + e^v) below zero, where e^-v would overflow. As on the CPU: with
// h = e^(-|v|/2) the product v h h is rounded to a denormal once, at the end.
__device__ __forceinline__ float silu(float v) {
  const float h = expf(-0.5f * fabsf(v));
  return (v < 0.f ? v * h * h : v) / fmaf(h, h, 1.f);
}

}  // namespace ernie::cuda
