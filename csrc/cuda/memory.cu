// Device memory, copies and stream order: what core/memory.h declares for CUDA.
#include <mutex>
#include <string>

#include "core/error.h"
#include "core/memory.h"
#include "cuda/common.cuh"

namespace ernie::cuda {
namespace {

// After these the process's GPU context is lost: every later call fails with the same error.
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
      return true;
    default:
      return false;
  }
}

const char* advice_for(cudaError_t error) {
  if (is_sticky(error)) return "; the GPU context is lost: restart the process";
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      return "; no usable NVIDIA driver or GPU on this machine: use device=\"cpu\"";
    case cudaErrorMemoryAllocation:
      return "; use a smaller batch, context or model";
    default:
      return "";
  }
}

// Makes the pool of each device keep freed memory: by default it returns to the system at every
// synchronisation, and each step would pay for mapping it again.
void keep_pool_memory(int device) {
  static std::mutex mutex;
  static uint64_t done = 0;  // bit per device; later devices are configured at each allocation
  const std::lock_guard<std::mutex> lock(mutex);
  if (device < 64 && (done >> device & 1)) return;
  cudaMemPool_t pool;
  ERNIE_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device));
  uint64_t threshold = UINT64_MAX;
  ERNIE_CUDA_CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  if (device < 64) done |= uint64_t{1} << device;
}

// What other streams have freed becomes available once they have come so far.
void reclaim_memory(int device) {
  cudaMemPool_t pool;
  ERNIE_CUDA_CHECK(cudaDeviceSynchronize());
  ERNIE_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device));
  ERNIE_CUDA_CHECK(cudaMemPoolTrimTo(pool, 0));
}

[[noreturn]] void raise_out_of_memory(int64_t nbytes, Device device) {
  cudaGetLastError();  // the allocation's own, not sticky
  size_t free = 0, total = 0;
  ignore_error(cudaMemGetInfo(&free, &total));
  throw OutOfMemoryError(to_string(device) + ": could not allocate " + std::to_string(nbytes) +
                         " bytes (" + std::to_string(free) + " of " + std::to_string(total) +
                         " bytes are free); use a smaller batch, context or model");
}

void check_device(Device device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    if (error != cudaErrorNoDevice && error != cudaErrorInsufficientDriver)
      raise_error("cudaGetDeviceCount", error);
    cudaGetLastError();
    count = 0;
  }
  if (device.index >= 0 && device.index < count) return;
  if (count == 0)
    throw DeviceError("device " + to_string(device) +
                      ": no usable NVIDIA driver or GPU on this machine; use device cpu");
  throw DeviceError("device: expected cuda:0 to cuda:" + std::to_string(count - 1) + ", got " +
                    to_string(device));
}

// cudaFreeAsync on the stream that the memory was made for, so that work queued there may still
// use it. A stream that its owner has destroyed since takes no more work: then all of the device's
// is waited for. A destructor cannot report: an error that stays is one that an earlier call will
// have told.
void release(void* p, const Stream& stream) {
  int previous = stream.device.index;
  ignore_error(cudaGetDevice(&previous));
  ignore_error(cudaSetDevice(stream.device.index));
  if (cudaFreeAsync(p, stream_of(stream)) != cudaSuccess) {
    cudaGetLastError();
    if (!is_capturing(stream)) {  // which waiting would end
      ignore_error(cudaDeviceSynchronize());
      ignore_error(cudaFree(p));
    }
  }
  ignore_error(cudaSetDevice(previous));
}

// Copies that are still under way read or write it.
void release_pinned(void* p, Device device) {
  int previous = device.index;
  ignore_error(cudaGetDevice(&previous));
  ignore_error(cudaSetDevice(device.index));
  ignore_error(cudaDeviceSynchronize());
  ignore_error(cudaFreeHost(p));
  ignore_error(cudaSetDevice(previous));
}

class Event {
 public:
  Event() { ERNIE_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { ignore_error(cudaEventDestroy(event_)); }  // the runtime keeps it until it happened
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

void raise_error(const char* call, cudaError_t error) {
  cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    int device = 0, major = 0, minor = 0;
    ignore_error(cudaGetDevice(&device));
    ignore_error(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    ignore_error(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    throw DeviceError("cuda:" + std::to_string(device) + ": compute capability " +
                      std::to_string(major) + "." + std::to_string(minor) +
                      ": this build has no kernels for it (" + cudaGetErrorName(error) +
                      "); expected 8.0 or newer, and a driver not older than the build");
  }
  const std::string message = std::string(call).substr(0, 128) +
                              " failed: " + cudaGetErrorName(error) + " (" +
                              cudaGetErrorString(error) + ")" + advice_for(error);
  if (error == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  throw CudaError(message);
}

std::shared_ptr<void> allocate(int64_t nbytes, const Stream& stream) {
  check_device(stream.device);
  static char nothing;
  if (nbytes == 0) return std::shared_ptr<void>(&nothing, [](void*) {});
  const DeviceGuard guard(stream.device);
  if (nbytes < 0) raise_out_of_memory(nbytes, stream.device);
  keep_pool_memory(stream.device.index);

  void* p = nullptr;
  const auto size = static_cast<size_t>(nbytes);
  cudaError_t error = cudaMallocAsync(&p, size, stream_of(stream));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    reclaim_memory(stream.device.index);
    error = cudaMallocAsync(&p, size, stream_of(stream));
  }
  if (error == cudaErrorMemoryAllocation) raise_out_of_memory(nbytes, stream.device);
  if (error != cudaSuccess) raise_error("cudaMallocAsync", error);
  return std::shared_ptr<void>(p, [stream](void* q) { release(q, stream); });
}

std::shared_ptr<void> allocate_pinned(int64_t nbytes, Device device) {
  check_device(device);
  static char nothing;
  if (nbytes == 0) return std::shared_ptr<void>(&nothing, [](void*) {});
  const DeviceGuard guard(device);
  void* p = nullptr;
  const cudaError_t error =
      nbytes < 0 ? cudaErrorMemoryAllocation
                 : cudaHostAlloc(&p, static_cast<size_t>(nbytes), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfMemoryError("host memory: could not allocate " + std::to_string(nbytes) +
                           " bytes that " + to_string(device) +
                           " can copy by itself; use a smaller batch or context");
  }
  if (error != cudaSuccess) raise_error("cudaHostAlloc", error);
  return std::shared_ptr<void>(p, [device](void* q) { release_pinned(q, device); });
}

DeviceMemory device_memory(Device device) {
  check_device(device);
  const DeviceGuard guard(device);
  reclaim_memory(device.index);
  size_t free = 0, total = 0;
  ERNIE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void copy_bytes(void* to, const void* from, int64_t nbytes, Device device, void* stream) {
  const DeviceGuard guard(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  ERNIE_CUDA_CHECK(
      cudaMemcpyAsync(to, from, static_cast<size_t>(nbytes), cudaMemcpyDefault, queue));
  ERNIE_CUDA_CHECK(cudaStreamSynchronize(queue));
}

void queue_copy(void* to, const void* from, int64_t nbytes, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  ERNIE_CUDA_CHECK(
      cudaMemcpyAsync(to, from, static_cast<size_t>(nbytes), cudaMemcpyDefault, stream_of(stream)));
}

void wait_for(const Stream& stream, void* other) {
  const DeviceGuard guard(stream.device);
  const Event event;
  ERNIE_CUDA_CHECK(cudaEventRecord(event.get(), static_cast<cudaStream_t>(other)));
  ERNIE_CUDA_CHECK(cudaStreamWaitEvent(stream_of(stream), event.get(), 0));
}

bool is_capturing(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ignore_error(cudaStreamIsCapturing(stream_of(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

void synchronize(const Stream& stream) {
  const DeviceGuard guard(stream.device);
  ERNIE_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, no GPU: nothing that a later call should report
  return 0;
}

}  // namespace ernie::cuda
