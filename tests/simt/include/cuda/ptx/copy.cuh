// machine/ptx_copy.cpp
#pragma once

#include <cstdint>

#include "simt_vectors.h"

namespace simt::ptx {

void cp_async_wait_group(int pending);

}  // namespace simt::ptx

namespace ernie::cuda {

uint32_t shared_address(const void* shared);

void cp_async_4(void* shared, const void* global, uint32_t source_bytes = 4);
void cp_async_8(void* shared, const void* global, uint32_t source_bytes = 8);
void cp_async_16(void* shared, const void* global, uint32_t source_bytes = 16);
void cp_async_commit_group();
template <int kPending>
void cp_async_wait_group() {
  simt::ptx::cp_async_wait_group(kPending);
}

uint4 ld_global_nc_l1_no_allocate_16(const void* global);

}  // namespace ernie::cuda
