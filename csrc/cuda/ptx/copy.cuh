// Copies from global memory that a thread starts and later waits for; loads past the caches. Copies
// that barriers in memory wait for: barrier.cuh.
#pragma once

#include <cstdint>

namespace ernie::cuda {

// The address that PTX gives shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// cp.async of 4, 8 or 16 bytes: copies source_bytes of them (all, or fewer) and fills the rest with
// zeros; both addresses are aligned to that size. Nothing is read where source_bytes is 0. The
// 16-byte form passes L1 by.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global,
                                           uint32_t source_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_8(void* shared, const void* global,
                                           uint32_t source_bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_16(void* shared, const void* global,
                                            uint32_t source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 16 aligned bytes that nothing writes during the kernel, past L1: they are read once.
__device__ __forceinline__ uint4 ld_global_nc_l1_no_allocate_16(const void* global) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(__cvta_generic_to_global(global)));
  return v;
}

}  // namespace ernie::cuda
