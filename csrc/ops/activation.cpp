#include "ops/activation.h"

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {

void silu_and_mul(const SiluAndMulArgs& a, const Stream& stream) {
  const Check check("silu_and_mul");
  check.rank("x", a.x, 2);
  const int64_t num_tokens = a.x.size(0), intermediate_size = a.x.size(1) / 2;
  check.dtype("x", a.x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", a.x);
  if (a.x.size(1) % 2 != 0)
    check.fail("x", "an even number of columns, gate and up", "shape " + shape_string(a.x));
  check.shape("out", a.out, {{"num_tokens", num_tokens}, {"intermediate_size", intermediate_size}});
  check.dtype("out", a.out, {a.x.dtype});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "x", a.x);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}});
  if (a.out.numel() == 0) return;
  dispatch("silu_and_mul", {&cpu::silu_and_mul, ERNIE_CUDA_FN(cuda::silu_and_mul)}, a, stream);
}

}  // namespace ernie
