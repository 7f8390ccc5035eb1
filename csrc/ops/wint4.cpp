#include "ops/wint4.h"

#include "core/dispatch.h"
#include "ops/quantized_checks.h"

namespace ernie {
namespace {

constexpr WeightFormat kFormat = {.dtype = DType::kU8,
                                  .per_element = 2,
                                  .plain_columns = "ceil(in_features / 2)",
                                  .packed_words = "ceil(in_features / 8)"};

}  // namespace

void wint4_linear(const Wint4LinearArgs& a, const Stream& stream) {
  check_quantized_linear(Check("wint4_linear"), kFormat, a, stream);
  if (a.out.numel() == 0) return;
  dispatch("wint4_linear", {&cpu::wint4_linear, ERNIE_CUDA_FN(cuda::wint4_linear)}, a, stream);
}

void wint4_linear_silu_and_mul(const Wint4LinearSiluAndMulArgs& a, const Stream& stream) {
  check_quantized_linear_silu_and_mul(Check("wint4_linear_silu_and_mul"), kFormat, a, stream);
  if (a.out.numel() == 0) return;
  dispatch("wint4_linear_silu_and_mul",
           {&cpu::wint4_linear_silu_and_mul, ERNIE_CUDA_FN(cuda::wint4_linear_silu_and_mul)}, a,
           stream);
}

void wint4_quantize(const Wint4QuantizeArgs& a, const Stream& stream) {
  check_quantize(Check("wint4_quantize"), kFormat, a, stream);
  if (a.weight.size(0) == 0) return;
  constexpr BackendFn<Wint4QuantizeArgs> kCuda = ERNIE_CUDA_FN(cuda::wint4_quantize);
  const bool packs = a.out.rank != 2;
  dispatch<Wint4QuantizeArgs>("wint4_quantize", {&cpu::wint4_quantize, packs ? nullptr : kCuda}, a,
                              stream);
}

void wint4_pack(const Wint4PackArgs& a, const Stream& stream) {
  check_pack(Check("wint4_pack"), kFormat, a, stream);
  if (a.out.numel() == 0) return;
  dispatch<Wint4PackArgs>("wint4_pack", {&cpu::wint4_pack, nullptr}, a, stream);
}

}  // namespace ernie
