// The devices of the CUDA runtime on the SIMT machine, and its words for errors.
#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "machine/runtime_state.h"

using namespace simt;

namespace {

int environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? std::atoi(value) : otherwise;
}

// 10 * major + minor, as ERNIE_SIMT_CAPABILITY gives it.
int capability() { return environment("ERNIE_SIMT_CAPABILITY", 90); }

struct ErrorWords {
  cudaError_t error;
  const char *name, *text;
};
#define NAMED(error) error, #error
constexpr ErrorWords kErrors[] = {
    {NAMED(cudaSuccess), "no error"},
    {NAMED(cudaErrorInvalidValue), "invalid argument"},
    {NAMED(cudaErrorMemoryAllocation), "out of memory"},
    {NAMED(cudaErrorInitializationError), "initialization error"},
    {NAMED(cudaErrorInvalidConfiguration), "invalid configuration argument"},
    {NAMED(cudaErrorInsufficientDriver), "CUDA driver version is insufficient"},
    {NAMED(cudaErrorNoDevice), "no CUDA-capable device is detected"},
    {NAMED(cudaErrorInvalidDevice), "invalid device ordinal"},
    {NAMED(cudaErrorNoKernelImageForDevice), "no kernel image is available"},
    {NAMED(cudaErrorECCUncorrectable), "uncorrectable ECC error encountered"},
    {NAMED(cudaErrorUnsupportedPtxVersion), "the PTX was compiled by a newer toolchain"},
    {NAMED(cudaErrorNvlinkUncorrectable), "uncorrectable NVLink error"},
    {NAMED(cudaErrorInvalidResourceHandle), "invalid resource handle"},
    {NAMED(cudaErrorIllegalAddress), "an illegal memory access was encountered"},
    {NAMED(cudaErrorLaunchOutOfResources), "too many resources requested for launch"},
    {NAMED(cudaErrorLaunchTimeout), "the launch timed out and was terminated"},
    {NAMED(cudaErrorAssert), "device-side assert triggered"},
    {NAMED(cudaErrorHardwareStackError), "hardware stack error"},
    {NAMED(cudaErrorIllegalInstruction), "an illegal instruction was encountered"},
    {NAMED(cudaErrorMisalignedAddress), "misaligned address"},
    {NAMED(cudaErrorInvalidAddressSpace), "operation not supported on address space"},
    {NAMED(cudaErrorInvalidPc), "invalid program counter"},
    {NAMED(cudaErrorLaunchFailure), "unspecified launch failure"},
    {NAMED(cudaErrorNotSupported), "operation not supported"},
    {NAMED(cudaErrorStreamCaptureUnsupported), "operation not permitted when capturing"},
    {NAMED(cudaErrorStreamCaptureInvalidated), "capture has been invalidated"},
    {NAMED(cudaErrorStreamCaptureImplicit), "capture depends on another stream"},
    {NAMED(cudaErrorStreamCaptureIsolation),
     "dependency created on uncaptured work in another stream"},
    {NAMED(cudaErrorStreamCaptureWrongThread),
     "attempt to terminate a thread-local capture sequence from another thread"},
    {NAMED(cudaErrorUnknown), "unknown error"},
};
#undef NAMED

const ErrorWords& words_for(cudaError_t error) {
  static constexpr ErrorWords kNone = {cudaErrorUnknown, "unrecognized error code",
                                       "unrecognized error code"};
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [&](const ErrorWords& w) { return w.error == error; });
  return found == std::end(kErrors) ? kNone : *found;
}

}  // namespace

// What a block may have, by the CUDA C++ Programming Guide's table of compute capabilities.
int simt::shared_memory_limit() {
  switch (capability()) {
    case 80:
    case 87:
      return 163 << 10;
    case 86:
    case 89:
    case 120:
      return 99 << 10;
    default:
      return 227 << 10;
  }
}

void simt::set_device_count(int count) { g_devices = count; }

// ------------------------------------------------------------------------------------- device

cudaError_t cudaGetDeviceCount(int* count) {
  ENTER("cudaGetDeviceCount", nullptr);
  *count = g_devices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  ENTER("cudaGetDevice", nullptr);
  *device = current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  ENTER("cudaSetDevice", nullptr, field("device", static_cast<uint64_t>(device)));
  if (device < 0 || device >= g_devices) return note(cudaErrorInvalidDevice);
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  ENTER("cudaDeviceGetAttribute", nullptr, field("attribute", attribute));
  if (device < 0 || device >= g_devices) return note(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = environment("ERNIE_SIMT_SM_COUNT", capability() == 80 ? 108 : 132);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability() / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability() % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = shared_memory_limit() + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = shared_memory_limit();
      return cudaSuccess;
  }
  return note(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() {
  ENTER("cudaDeviceSynchronize", nullptr);
  return note(refuse_capture());
}

// ------------------------------------------------------------------------------------- errors

cudaError_t cudaGetLastError() {
  const cudaError_t last = take_last_error();
  const cudaError_t injected = enter_call("cudaGetLastError", nullptr);
  return injected != cudaSuccess ? injected : last;
}
cudaError_t cudaPeekAtLastError() { return peek_last_error(); }

const char* cudaGetErrorName(cudaError_t error) { return words_for(error).name; }

const char* cudaGetErrorString(cudaError_t error) {
  const std::string& fault = fault_text_of(error);
  return fault.empty() ? words_for(error).text : fault.c_str();
}
