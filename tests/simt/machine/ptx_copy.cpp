// Copies that a thread starts and later waits for; loads past the caches.
#include <cstdint>
#include <string>

#include "cuda/ptx/copy.cuh"
#include "machine/machine.h"

namespace simt::ptx {
namespace {

void cp_async(void* shared, const void* global, uint32_t size, uint32_t source_bytes,
              const void* site) {
  check_alignment(shared, size, "cp.async", site);
  check_alignment(global, size, "cp.async", site);
  if (source_bytes > size)
    fail(Fault::kInstruction,
         ("cp.async of " + std::to_string(size) + " bytes cannot take " +
          std::to_string(source_bytes))
             .c_str(),
         site);
  add_to_copy_group(begin_copy(shared, global, source_bytes, size - source_bytes, site));
}

}  // namespace

void cp_async_wait_group(int pending) { wait_copy_groups(pending); }

}  // namespace simt::ptx

namespace ernie::cuda {

uint32_t shared_address(const void* shared) { return simt::shared_address(shared); }

void cp_async_4(void* shared, const void* global, uint32_t source_bytes) {
  simt::ptx::cp_async(shared, global, 4, source_bytes, __builtin_return_address(0));
}
void cp_async_8(void* shared, const void* global, uint32_t source_bytes) {
  simt::ptx::cp_async(shared, global, 8, source_bytes, __builtin_return_address(0));
}
void cp_async_16(void* shared, const void* global, uint32_t source_bytes) {
  simt::ptx::cp_async(shared, global, 16, source_bytes, __builtin_return_address(0));
}

void cp_async_commit_group() { simt::commit_copy_group(); }

uint4 ld_global_nc_l1_no_allocate_16(const void* global) {
  const void* site = __builtin_return_address(0);
  simt::check_alignment(global, 16, "ld.global.nc.v4", site);
  simt::check_read(global, 16, site);
  uint4 v;
  __builtin_memcpy(&v, global, 16);
  return v;
}

}  // namespace ernie::cuda
