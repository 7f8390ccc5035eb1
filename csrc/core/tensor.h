// TensorView: what every op receives. It describes memory; it never owns it (storage.h does).
#pragma once

#include <cstdint>
#include <string>

namespace ernie {

// Types that an op computes with, and those that a caller may pass by mistake and be told about.
enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
};

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
  bool operator==(const Device&) const = default;
};

// The queue a call runs on: a cudaStream_t on CUDA, null on CPU.
struct Stream {
  Device device;
  void* handle = nullptr;
};

struct TensorView {
  static constexpr int kMaxRank = 6;

  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  bool readonly = false;
  int32_t rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};  // in elements, not bytes

  void* stream = nullptr;              // queue on which the data becomes ready (CUDA only)
  const char* not_a_tensor = nullptr;  // the Python type that came instead; Check reports it
  const char* defect = nullptr;  // "expected X, got Y" of a tensor that cannot be read; as above

  // Negative dims count from the end: size(-1) is the innermost extent.
  int64_t size(int dim) const { return shape[dim < 0 ? dim + rank : dim]; }
  int64_t step(int dim) const { return stride[dim < 0 ? dim + rank : dim]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

int64_t size_of(DType);  // bytes per element
const char* name_of(DType);
std::string to_string(Device);
std::string shape_string(const TensorView&);  // "[2, 3]"

}  // namespace ernie
