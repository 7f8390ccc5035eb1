// Launches of the CUDA runtime on the SIMT machine.
#include <cstring>
#include <map>
#include <vector>

#include "machine/block.h"
#include "machine/runtime_state.h"

namespace simt {
namespace {

std::map<const void*, int> g_dynamic_limits;  // of kernels that have asked for more than 48 KiB

cudaError_t error_of(Fault fault) {
  switch (fault) {
    case Fault::kOutOfBounds:
      return cudaErrorIllegalAddress;
    case Fault::kMisaligned:
      return cudaErrorMisalignedAddress;
    case Fault::kDeadlock:
    case Fault::kTimeout:
      return cudaErrorLaunchTimeout;
    case Fault::kInstruction:
      return cudaErrorIllegalInstruction;
    case Fault::kStackOverflow:
      return cudaErrorHardwareStackError;
    default:
      return cudaErrorLaunchFailure;
  }
}

cudaError_t check_configuration(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 0xffff ||
      grid.z > 0xffff || threads == 0 || threads > 1024 || block.z > 64)
    return cudaErrorInvalidConfiguration;
  const auto limit = g_dynamic_limits.find(kernel);
  const int allowed = limit == g_dynamic_limits.end() ? 48 << 10 : limit->second;
  return dynamic_shared > static_cast<size_t>(allowed) ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

cudaError_t set_kernel_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  ENTER("cudaFuncSetAttribute", nullptr,
        "\"kernel\": \"" + kernel_name(kernel) + "\", " +
            field("value", static_cast<uint64_t>(value)));
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > shared_memory_limit())
    return note(cudaErrorInvalidValue);
  g_dynamic_limits[kernel] = value;
  return cudaSuccess;
}

void launch_kernel(const void* kernel, void (*run)(void*), const void* arguments, size_t size,
                   dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(g_machine);
  cudaError_t error = enter_call(
      "cudaLaunchKernel", stream,
      "\"kernel\": \"" + kernel_name(kernel) + "\", \"grid\": [" + std::to_string(grid.x) + ", " +
          std::to_string(grid.y) + ", " + std::to_string(grid.z) + "], \"block\": [" +
          std::to_string(block.x) + ", " + std::to_string(block.y) + ", " +
          std::to_string(block.z) + "], " + field("shared", dynamic_shared));
  if (error == cudaSuccess && !known_here(stream)) error = cudaErrorInvalidResourceHandle;
  if (error == cudaSuccess) error = check_configuration(kernel, grid, block, dynamic_shared);
  if (error != cudaSuccess) return set_last_error(error);
  // 16 bytes are as much as any parameter asks for.
  std::vector<std::max_align_t> kept(size / sizeof(std::max_align_t) + 1);
  std::memcpy(kept.data(), arguments, size);
  error = queue(stream, [=]() mutable {
    const Outcome outcome = run_grid({kernel,
                                      run,
                                      kept.data(),
                                      size,
                                      {grid.x, grid.y, grid.z},
                                      {block.x, block.y, block.z},
                                      dynamic_shared});
    if (outcome.ok) return cudaSuccess;
    set_last_error(error_of(outcome.fault), outcome.text);
    return error_of(outcome.fault);
  });
  if (error != cudaSuccess && peek_last_error() == cudaSuccess) set_last_error(error);
}

}  // namespace simt
