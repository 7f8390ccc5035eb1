// Instructions of one thread: asynchronous copies, loads past the caches, conversions.
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/bf16.h"
#include "cuda/ptx.cuh"
#include "machine/machine.h"

namespace simt::ptx {

void cp_async_16(void* shared, const void* global, uint32_t source_bytes) {
  const void* site = __builtin_return_address(0);
  check_alignment(shared, 16, "cp.async", site);
  check_alignment(global, 16, "cp.async", site);
  if (source_bytes > 16) fail(Fault::kInstruction, "cp.async copies at most 16 bytes", site);
  add_to_copy_group(begin_copy(shared, global, source_bytes, 16 - source_bytes, site));
}

void cp_async_commit_group() { commit_copy_group(); }
void cp_async_wait_group(int pending) { wait_copy_groups(pending); }

uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  const auto convert = [](float f) -> uint32_t {
    return std::isnan(f) ? 0x7fffu : ernie::to_bf16(f).bits;
  };
  return convert(high) << 16 | convert(low);
}

float ex2_approx_ftz(float x) {
  const auto flush = [](float f) { return std::fpclassify(f) == FP_SUBNORMAL ? f * 0.f : f; };
  return flush(std::exp2(flush(x)));
}

Words4 ld_global_nc_16(const void* global) {
  const void* site = __builtin_return_address(0);
  check_alignment(global, 16, "ld.global.nc.v4", site);
  check_read(global, 16, site);
  Words4 v;
  __builtin_memcpy(v.word, global, 16);
  return v;
}

}  // namespace simt::ptx
