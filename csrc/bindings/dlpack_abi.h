// The part of the DLPack ABI that the border uses. Layouts follow the DLPack specification
// (dmlc/dlpack, v1.1 and its exchange table of v1.3); the static_asserts guard the transcription.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie::dlpack {

enum DeviceCode : int32_t { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 };
enum TypeCode : uint8_t { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4, kDLBool = 6 };

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // null means compact row-major
  uint64_t byte_offset;
};
static_assert(sizeof(DLTensor) == 48 && offsetof(DLTensor, byte_offset) == 40);

// In a capsule named "dltensor".
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

struct DLPackVersion {
  uint32_t major, minor;
};

constexpr uint64_t kReadOnlyFlag = 1;
constexpr uint64_t kCopiedFlag = 2;

// In a capsule named "dltensor_versioned".
struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor dl_tensor;
};
static_assert(offsetof(DLManagedTensorVersioned, dl_tensor) == 32);

// type(tensor).__dlpack_c_exchange_api__ is a capsule around this table (DLPack >= 1.3).
struct DLPackExchangeAPI {
  DLPackVersion version;
  void* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* py_object, DLTensor* out);  // may be null
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out_stream);
};
static_assert(offsetof(DLPackExchangeAPI, dltensor_from_py_object_no_sync) == 40);

}  // namespace ernie::dlpack
