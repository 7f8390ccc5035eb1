#include "cuda/wint8/kernels.h"
#include "cuda/wint8/launch.h"
#include "cuda/wint8/quantize_kernel.cuh"
#include "ops/activation.h"
#include "ops/wint8.h"

namespace ernie::cuda {

void wint8_linear(const Wint8LinearArgs& a, const Stream& stream) {
  launch_wint(a, {launch_wint8_narrow_bf16, launch_wint8_tile_bf16}, stream);
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream& stream) {
  cuda::wint8_linear({.out = *a.gate_up,
                      .x = a.x,
                      .weight = a.weight,
                      .scale = a.scale,
                      .bias = a.bias,
                      .int8_activations = false},
                     stream);
  cuda::silu_and_mul({.out = a.out, .x = *a.gate_up}, stream);
}

void wint8_quantize(const Wint8QuantizeArgs& a, const Stream& stream) {
  launch_wint_quantize<int8_t>(a, stream);
}

}  // namespace ernie::cuda
