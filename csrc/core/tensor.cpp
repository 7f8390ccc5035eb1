#include "core/tensor.h"

namespace ernie {
namespace {

struct DTypeInfo {
  const char* name;
  int64_t size;
};

// In the order of enum class DType.
constexpr DTypeInfo kDTypes[] = {
    {"float64", 8}, {"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8},
    {"int32", 4},   {"int16", 2},   {"int8", 1},    {"uint64", 8},   {"uint32", 4},
    {"uint16", 2},  {"uint8", 1},   {"bool", 1},
};

}  // namespace

int64_t size_of(DType dtype) { return kDTypes[static_cast<int>(dtype)].size; }

const char* name_of(DType dtype) { return kDTypes[static_cast<int>(dtype)].name; }

std::string to_string(Device device) {
  if (device.type == DeviceType::kCpu) return "cpu";
  return "cuda:" + std::to_string(device.index);
}

std::string shape_string(const TensorView& t) {
  std::string s = "[";
  for (int i = 0; i < t.rank; ++i) s += (i ? ", " : "") + std::to_string(t.shape[i]);
  return s + "]";
}

}  // namespace ernie
