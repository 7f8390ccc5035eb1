#include "ops/wint8.h"

#include "core/dispatch.h"
#include "ops/quantized_checks.h"

namespace ernie {
namespace {

constexpr WeightFormat kFormat = {.dtype = DType::kI8,
                                  .per_element = 1,
                                  .plain_columns = "in_features",
                                  .packed_words = "ceil(in_features / 4)"};

}  // namespace

void wint8_linear(const Wint8LinearArgs& a, const Stream& stream) {
  check_quantized_linear(Check("wint8_linear"), kFormat, a, stream);
  if (a.int8_activations) refuse_int8_activations_on_cuda("wint8_linear", stream);
  if (a.out.numel() == 0) return;
  dispatch("wint8_linear", {&cpu::wint8_linear, ERNIE_CUDA_FN(cuda::wint8_linear)}, a, stream);
}

void wint8_linear_silu_and_mul(const Wint8LinearSiluAndMulArgs& a, const Stream& stream) {
  check_quantized_linear_silu_and_mul(Check("wint8_linear_silu_and_mul"), kFormat, a, stream);
  if (a.int8_activations) refuse_int8_activations_on_cuda("wint8_linear_silu_and_mul", stream);
  if (a.out.numel() == 0) return;
  dispatch("wint8_linear_silu_and_mul",
           {&cpu::wint8_linear_silu_and_mul, ERNIE_CUDA_FN(cuda::wint8_linear_silu_and_mul)}, a,
           stream);
}

void wint8_quantize(const Wint8QuantizeArgs& a, const Stream& stream) {
  check_quantize(Check("wint8_quantize"), kFormat, a, stream);
  if (a.weight.size(0) == 0) return;
  constexpr BackendFn<Wint8QuantizeArgs> kCuda = ERNIE_CUDA_FN(cuda::wint8_quantize);
  const bool packs = a.out.rank != 2;
  dispatch<Wint8QuantizeArgs>("wint8_quantize", {&cpu::wint8_quantize, packs ? nullptr : kCuda}, a,
                              stream);
}

void wint8_pack(const Wint8PackArgs& a, const Stream& stream) {
  check_pack(Check("wint8_pack"), kFormat, a, stream);
  if (a.out.numel() == 0) return;
  dispatch<Wint8PackArgs>("wint8_pack", {&cpu::wint8_pack, nullptr}, a, stream);
}

}  // namespace ernie
