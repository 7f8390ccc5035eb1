// Stands in for csrc/cuda/ptx.cuh, which the include path finds only after this one: the same
// functions, each doing what the PTX ISA says the instruction does (machine/ptx_*.cpp).
//
// Operands and results go by value: the address of a kernel's registers would make the compiler
// keep them in memory, and instrument every use.
#pragma once

#include <cstdint>

#include "simt_qualifiers.h"
#include "simt_vectors.h"

namespace simt::ptx {

struct Words4 {
  uint32_t word[4];
};
struct Floats4 {
  float f[4];
};
struct MmaBf16 {
  float c[4];
  uint32_t a[4], b[2];
};

void cp_async_16(void* shared, const void* global, uint32_t source_bytes);
void cp_async_commit_group();
void cp_async_wait_group(int pending);
uint32_t cvt_rn_bf16x2_f32(float high, float low);
float ex2_approx_ftz(float x);
Words4 ld_global_nc_16(const void* global);
Words4 ldmatrix_x4(const void* shared_row, bool transposed);
Floats4 mma_m16n8k16_bf16(MmaBf16 operands);

}  // namespace simt::ptx

namespace ernie::cuda {

__forceinline__ void cp_async_16(void* shared, const void* global, uint32_t source_bytes = 16) {
  simt::ptx::cp_async_16(shared, global, source_bytes);
}
__forceinline__ void cp_async_commit_group() { simt::ptx::cp_async_commit_group(); }
template <int kPending>
__forceinline__ void cp_async_wait_group() {
  simt::ptx::cp_async_wait_group(kPending);
}

__forceinline__ uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  return simt::ptx::cvt_rn_bf16x2_f32(high, low);
}
__forceinline__ float ex2_approx(float x) { return simt::ptx::ex2_approx_ftz(x); }

__forceinline__ uint4 ld_global_nc_l1_no_allocate_16(const void* global) {
  const simt::ptx::Words4 v = simt::ptx::ld_global_nc_16(global);
  return {v.word[0], v.word[1], v.word[2], v.word[3]};
}

__forceinline__ void ldmatrix_x4(uint32_t (&matrix)[4], const void* shared_row) {
  const simt::ptx::Words4 v = simt::ptx::ldmatrix_x4(shared_row, false);
  for (int i = 0; i < 4; ++i) matrix[i] = v.word[i];
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&matrix)[4], const void* shared_row) {
  const simt::ptx::Words4 v = simt::ptx::ldmatrix_x4(shared_row, true);
  for (int i = 0; i < 4; ++i) matrix[i] = v.word[i];
}

__forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  const simt::ptx::Floats4 r =
      simt::ptx::mma_m16n8k16_bf16({{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}});
  for (int i = 0; i < 4; ++i) d[i] = r.f[i];
}

}  // namespace ernie::cuda
