#include "bindings/tensor_caster.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <unordered_map>

#include "bindings/dlpack_abi.h"
#include "bindings/tensor.h"
#include "core/error.h"
#include "core/graph.h"
#include "core/memory.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using dlpack::DLPackExchangeAPI;
using dlpack::DLTensor;

DType dtype_of(const dlpack::DLDataType& t) {
  struct Row {
    uint8_t code, bits;
    DType dtype;
  };
  static constexpr Row kRows[] = {
      {dlpack::kDLFloat, 64, DType::kF64}, {dlpack::kDLFloat, 32, DType::kF32},
      {dlpack::kDLFloat, 16, DType::kF16}, {dlpack::kDLBfloat, 16, DType::kBF16},
      {dlpack::kDLInt, 64, DType::kI64},   {dlpack::kDLInt, 32, DType::kI32},
      {dlpack::kDLInt, 16, DType::kI16},   {dlpack::kDLInt, 8, DType::kI8},
      {dlpack::kDLUInt, 64, DType::kU64},  {dlpack::kDLUInt, 32, DType::kU32},
      {dlpack::kDLUInt, 16, DType::kU16},  {dlpack::kDLUInt, 8, DType::kU8},
      {dlpack::kDLBool, 8, DType::kBool},
  };
  for (const Row& row : kRows)
    if (t.lanes == 1 && row.code == t.code && row.bits == t.bits) return row.dtype;
  throw ArgumentError("expected a numeric dtype, got DLPack code " + std::to_string(t.code) +
                      " of " + std::to_string(t.bits) + " bits; view packed or fp8 data as uint8");
}

Device device_of(const dlpack::DLDevice& d) {
  switch (d.device_type) {
    case dlpack::kDLCPU:
    case dlpack::kDLCUDAHost:
      return {DeviceType::kCpu, 0};
    case dlpack::kDLCUDA:
      return {DeviceType::kCuda, d.device_id};
  }
  throw ArgumentError("expected a tensor on cpu or cuda, got DLPack device type " +
                      std::to_string(d.device_type));
}

void check_rank(int64_t rank) {
  if (rank > TensorView::kMaxRank)
    throw ArgumentError("expected at most " + std::to_string(TensorView::kMaxRank) +
                        " dimensions, got " + std::to_string(rank));
}

TensorView from_dltensor(const DLTensor& t) {
  check_rank(t.ndim);
  TensorView v;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.dtype = dtype_of(t.dtype);
  v.device = device_of(t.device);
  v.rank = t.ndim;
  int64_t compact = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    v.shape[i] = t.shape[i];
    v.stride[i] = t.strides != nullptr ? t.strides[i] : compact;
    compact *= t.shape[i];
  }
  if (reinterpret_cast<uintptr_t>(v.data) % size_of(v.dtype) != 0)
    throw ArgumentError("expected aligned data, got a misaligned address; copy the tensor first");
  return v;
}

// numpy exports neither bfloat16 nor read-only arrays to every DLPack consumer: its own interface
// gives all of them.
TensorView from_numpy(const py::array& a) {
  check_rank(a.ndim());
  const py::dtype dtype = a.dtype();
  TensorView v;
  v.dtype = dtype_named(py::cast<std::string>(dtype.attr("name")), nullptr);
  if (!py::cast<bool>(dtype.attr("isnative")))
    throw ArgumentError("expected native byte order, got the other one");
  v.data = const_cast<void*>(a.data());
  v.readonly = !a.writeable();
  v.rank = static_cast<int32_t>(a.ndim());
  const int64_t itemsize = size_of(v.dtype);
  for (int i = 0; i < v.rank; ++i) {
    v.shape[i] = a.shape(i);
    if (a.strides(i) % itemsize != 0)
      throw ArgumentError("expected strides that are multiples of the item size, got " +
                          std::to_string(a.strides(i)) + " bytes; copy the array first");
    v.stride[i] = a.strides(i) / itemsize;
  }
  if (reinterpret_cast<uintptr_t>(v.data) % itemsize != 0)
    throw ArgumentError("expected aligned data, got a misaligned address; copy the array first");
  return v;
}

const DLPackExchangeAPI* find_exchange_api(PyTypeObject* type) {
  const py::handle cls(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(cls, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api = static_cast<const DLPackExchangeAPI*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  return api->version.major == 1 && api->dltensor_from_py_object_no_sync ? api : nullptr;
}

// Null for types without the table. Asked once per type, and the type is kept alive so that its
// address cannot come to mean another one. Guarded by the GIL.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static auto* known = new std::unordered_map<PyTypeObject*, const DLPackExchangeAPI*>;
  const auto it = known->find(type);
  if (it != known->end()) return it->second;
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  return (*known)[type] = find_exchange_api(type);
}

// What the other library says of it would make no sense here.
[[noreturn]] void refuse(py::handle src) {
  PyErr_Clear();
  throw ArgumentError(std::string("expected a tensor that DLPack can export, got one of ") +
                      Py_TYPE(src.ptr())->tp_name + " that cannot");
}

TensorView from_exchange_api(const DLPackExchangeAPI* api, py::handle src) {
  DLTensor t;
  if (api->dltensor_from_py_object_no_sync(src.ptr(), &t) != 0) refuse(src);
  TensorView v = from_dltensor(t);
  if (v.device.type == DeviceType::kCuda && api->current_work_stream != nullptr &&
      api->current_work_stream(dlpack::kDLCUDA, v.device.index, &v.stream) != 0)
    refuse(src);
  return v;
}

TensorView from_capsule(const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* managed = static_cast<dlpack::DLManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != 1)
      throw ArgumentError("expected DLPack major version 1, got " +
                          std::to_string(managed->version.major));
    TensorView v = from_dltensor(managed->dl_tensor);
    v.readonly = (managed->flags & dlpack::kReadOnlyFlag) != 0;
    return v;
  }
  auto* managed =
      static_cast<dlpack::DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  return from_dltensor(managed->dl_tensor);
}

// The capsule's own destructor calls its deleter, as it was never consumed.
py::object request_capsule(py::handle src) {
  const py::object method = src.attr("__dlpack__");
  // CUDA data shall be ready on the legacy default stream (1), which the op then runs on.
  py::dict kwargs;
  if (py::hasattr(src, "__dlpack_device__") &&
      py::cast<int>(py::tuple(src.attr("__dlpack_device__")())[0]) == dlpack::kDLCUDA)
    kwargs["stream"] = 1;
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 1), **kwargs);
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_TypeError)) throw;
  }
  return method(**kwargs);  // a producer from before DLPack 1.0
}

}  // namespace

namespace {

TensorView read(py::handle src, py::object* keep_alive) {
  if (py::isinstance<py::array>(src)) return from_numpy(py::reinterpret_borrow<py::array>(src));
  if (const DLPackExchangeAPI* api = exchange_api(Py_TYPE(src.ptr())))
    return from_exchange_api(api, src);
  if (py::hasattr(src, "__dlpack__")) {
    try {
      *keep_alive = request_capsule(src);
      return from_capsule(*keep_alive);
    } catch (const py::error_already_set& e) {
      if (!e.matches(PyExc_Exception)) throw;  // a KeyboardInterrupt
    }
    refuse(src);
  }
  TensorView v;
  v.not_a_tensor = Py_TYPE(src.ptr())->tp_name;
  return v;
}

}  // namespace

TensorView view_of(py::handle src, py::object* keep_alive) {
  if (const Tensor* t = as_tensor(src)) return t->view;
  try {
    return read(src, keep_alive);
  } catch (const ArgumentError& e) {
    // The op knows the argument's name; it reports this with it.
    const py::str words(e.what());
    *keep_alive = words;
    TensorView v;
    v.defect = PyUnicode_AsUTF8(words.ptr());
    return v;
  }
}

Stream stream_of(Arguments arguments) {
  // What is no tensor, or cannot be read as one, is on no device.
  for (const TensorView* t : arguments)
    if (t != nullptr && t->device.type == DeviceType::kCuda)
      return captured_stream({t->device, t->stream});
  return {};
}

StreamOrder::StreamOrder(const Stream& stream, Arguments arguments) : stream_(stream) {
  if (stream.device.type != DeviceType::kCuda) return;
  for (const TensorView* t : arguments) {
    if (t == nullptr || t->device != stream.device || t->stream == stream.handle) continue;
    if (std::find(others_.begin(), others_.end(), t->stream) == others_.end())
      others_.push_back(t->stream);
  }
#if ERNIE_WITH_CUDA
  const bool is_ours =
      stream.handle != nullptr && captured_stream({stream.device, nullptr}).handle == stream.handle;
  if (!others_.empty() && (is_ours || cuda::is_capturing(stream))) others_.clear();
  for (void* other : others_) cuda::wait_for(stream, other);
#endif
}

void StreamOrder::let_others_wait() const {
#if ERNIE_WITH_CUDA
  for (void* other : others_) cuda::wait_for({stream_.device, other}, stream_.handle);
#endif
}

}  // namespace ernie::bindings
