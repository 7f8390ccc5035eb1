#include "cuda/wint4/kernels.h"
#include "cuda/wint8/launch.h"
#include "cuda/wint8/quantize_kernel.cuh"
#include "ops/activation.h"
#include "ops/wint4.h"

namespace ernie::cuda {

void wint4_linear(const Wint4LinearArgs& a, const Stream& stream) {
  launch_wint(a, {launch_wint4_narrow_bf16, launch_wint4_tile_bf16}, stream);
}

void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs& a, const Stream& stream) {
  cuda::wint4_linear(
      {.out = *a.gate_up, .x = a.x, .weight = a.weight, .scale = a.scale, .bias = a.bias}, stream);
  cuda::silu_and_mul({.out = a.out, .x = *a.gate_up}, stream);
}

void wint4_quantize(const Wint4QuantizeArgs& a, const Stream& stream) {
  launch_wint_quantize<Nibbles>(a, stream);
}

}  // namespace ernie::cuda
