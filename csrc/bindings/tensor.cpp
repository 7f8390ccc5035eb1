#include "bindings/tensor.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/dlpack_abi.h"
#include "bindings/scalar_caster.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/error.h"
#include "core/memory.h"
#include "io/file.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

constexpr DType kAllDTypes[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64,
                                DType::kI32, DType::kI16, DType::kI8,  DType::kU64,  DType::kU32,
                                DType::kU16, DType::kU8,  DType::kBool};

py::object numpy_dtype(DType dtype) {
  if (dtype == DType::kBF16)
    return py::module_::import("numpy").attr("dtype")(
        py::module_::import("ml_dtypes").attr("bfloat16"));
  return py::module_::import("numpy").attr("dtype")(name_of(dtype));
}

py::tuple tuple_of(const int64_t* values, int count) {
  py::tuple t(count);
  for (int i = 0; i < count; ++i) t[i] = values[i];
  return t;
}

// A numpy array over the tensor's memory, which it keeps alive. CUDA tensors are copied first.
py::object to_numpy(const Tensor& t) {
  if (t.view.device.type == DeviceType::kCuda) {
    py::gil_scoped_release release;
    const Tensor host = copy_to(t, {});
    py::gil_scoped_acquire acquire;
    return to_numpy(host);
  }
  const int64_t itemsize = size_of(t.view.dtype);
  std::vector<py::ssize_t> shape, strides;
  for (int i = 0; i < t.view.rank; ++i) {
    shape.push_back(t.view.shape[i]);
    strides.push_back(t.view.stride[i] * itemsize);
  }
  const py::object owner = py::cast(t);
  // numpy knows no bfloat16 of its own: it sees 16-bit words and is told what they are.
  const bool brain = t.view.dtype == DType::kBF16;
  const py::array words(py::dtype(brain ? "uint16" : name_of(t.view.dtype)), shape, strides,
                        t.view.data, owner);
  return brain ? words.attr("view")(numpy_dtype(DType::kBF16)) : py::object(words);
}

Tensor from_array(py::handle array, const Scalar<std::string>& device) {
  const Stream to{device_named(device.get("from_numpy", "device")), nullptr};
  py::object keep_alive;
  const TensorView view = view_of(array, &keep_alive);
  Check("from_numpy").rank("array", view, view.rank);  // reports what cannot be read
  Tensor borrowed;
  borrowed.view = view;
  py::gil_scoped_release release;
  return copy_to(borrowed, to);
}

Tensor index(Tensor t, const py::object& key) {
  const py::tuple keys = py::isinstance<py::tuple>(key) ? py::tuple(key) : py::make_tuple(key);
  int dim = 0;
  for (const py::handle k : keys) {
    if (dim >= t.view.rank)
      throw py::index_error("too many indices for a tensor of shape " + shape_string(t.view));
    const int64_t extent = t.view.shape[dim];
    if (py::isinstance<py::slice>(k)) {
      py::ssize_t begin, end, step, length;
      if (!py::reinterpret_borrow<py::slice>(k).compute(extent, &begin, &end, &step, &length))
        throw py::error_already_set();
      if (step != 1) throw py::index_error("a tensor slice needs step 1; use numpy() for others");
      t = narrow(t, dim++, begin, begin + length);
      continue;
    }
    int64_t i = PyNumber_AsSsize_t(k.ptr(), PyExc_IndexError);
    if (i == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (i < -extent || i >= extent)
      throw py::index_error("index " + std::to_string(i) + " is out of range for dimension " +
                            std::to_string(dim) + " of shape " + shape_string(t.view));
    if (i < 0) i += extent;
    t = narrow(t, dim, i, i + 1);
    for (int d = dim + 1; d < t.view.rank; ++d) {
      t.view.shape[d - 1] = t.view.shape[d];
      t.view.stride[d - 1] = t.view.stride[d];
    }
    --t.view.rank;
  }
  return t;
}

// ------------------------------------------------------------------------------ DLPack export

struct Exported {
  Tensor tensor;
  dlpack::DLManagedTensorVersioned versioned;
  dlpack::DLManagedTensor legacy;
};

dlpack::DLDataType dl_type(DType dtype) {
  const auto bits = static_cast<uint8_t>(size_of(dtype) * 8);
  switch (dtype) {
    case DType::kF64:
    case DType::kF32:
    case DType::kF16:
      return {dlpack::kDLFloat, bits, 1};
    case DType::kBF16:
      return {dlpack::kDLBfloat, bits, 1};
    case DType::kBool:
      return {dlpack::kDLBool, bits, 1};
    case DType::kU64:
    case DType::kU32:
    case DType::kU16:
    case DType::kU8:
      return {dlpack::kDLUInt, bits, 1};
    default:
      return {dlpack::kDLInt, bits, 1};
  }
}

dlpack::DLDevice dl_device(Device d) {
  return {d.type == DeviceType::kCuda ? dlpack::kDLCUDA : dlpack::kDLCPU, d.index};
}

dlpack::DLTensor describe(Tensor& t) {
  return {t.view.data,
          dl_device(t.view.device),
          t.view.rank,
          dl_type(t.view.dtype),
          t.view.shape,
          t.view.stride,
          0};
}

// The tensor itself, or a copy where the consumer asks for one or for the host.
Tensor exportable(const Tensor& t, const py::object& device, const py::object& copy) {
  bool to_host = false;
  if (!device.is_none()) {
    const auto [type, index] = py::cast<std::pair<int32_t, int32_t>>(device);
    const dlpack::DLDevice own = dl_device(t.view.device);
    to_host = type == dlpack::kDLCPU && own.device_type != dlpack::kDLCPU;
    if (!to_host && (type != own.device_type || index != own.device_id))
      throw py::buffer_error(
          "__dlpack__: dl_device: expected the device of the tensor or the host");
  }
  const bool may_copy = copy.is_none() || py::cast<bool>(copy);
  if (to_host && !may_copy)
    throw py::buffer_error("__dlpack__: copy: expected True or None for another device");
  if (!to_host && (copy.is_none() || !may_copy)) return t;
  py::gil_scoped_release release;
  return copy_to(t, to_host ? Stream{} : Stream{t.view.device, t.view.stream});
}

#if ERNIE_WITH_CUDA
// The consumer's stream must wait for ours. None is the legacy default stream, as 1 is; -1 asks for
// no synchronisation.
void hand_over(const TensorView& v, const py::object& stream) {
  const int64_t consumer = stream.is_none() ? 1 : py::cast<int64_t>(stream);
  void* queue = reinterpret_cast<void*>(consumer == 1 ? 0 : consumer);
  if (consumer != -1 && queue != v.stream) cuda::wait_for({v.device, queue}, v.stream);
}
#endif

py::capsule to_dlpack(const Tensor& own, const py::object& stream, const py::object& max_version,
                      const py::object& device, const py::object& copy) {
  const bool versioned = !max_version.is_none() && py::cast<int>(py::tuple(max_version)[0]) >= 1;
  const Tensor t = exportable(own, device, copy);
#if ERNIE_WITH_CUDA
  if (t.view.device.type == DeviceType::kCuda) hand_over(t.view, stream);
#else
  (void)stream;
#endif
  auto* e = new Exported{t, {}, {}};
  if (versioned) {
    e->versioned = {
        {1, 1},
        e,
        [](dlpack::DLManagedTensorVersioned* m) { delete static_cast<Exported*>(m->manager_ctx); },
        (t.view.readonly ? dlpack::kReadOnlyFlag : 0) |
            (t.storage == own.storage ? 0 : dlpack::kCopiedFlag),
        describe(e->tensor)};
    return py::capsule(&e->versioned, "dltensor_versioned", [](PyObject* capsule) {
      // A consumer renames the capsule and takes over; only an unused one is ours to release.
      if (!PyCapsule_IsValid(capsule, "dltensor_versioned")) return;
      auto* m = static_cast<dlpack::DLManagedTensorVersioned*>(
          PyCapsule_GetPointer(capsule, "dltensor_versioned"));
      m->deleter(m);
    });
  }
  e->legacy = {describe(e->tensor), e,
               [](dlpack::DLManagedTensor* m) { delete static_cast<Exported*>(m->manager_ctx); }};
  return py::capsule(&e->legacy, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* m = static_cast<dlpack::DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    m->deleter(m);
  });
}

// Tensor.__new__ would leave the C++ tensor unmade.
PyObject* refuse_to_make(PyTypeObject*, PyObject*, PyObject*) {
  PyErr_SetString(PyExc_TypeError, "Tensor: use empty() or from_numpy() to make one");
  return nullptr;
}

std::string repr(const Tensor& t) {
  return "Tensor(shape=" + shape_string(t.view) + ", dtype=" + name_of(t.view.dtype) +
         ", device=" + to_string(t.view.device) + ")";
}

}  // namespace

const Tensor* as_tensor(py::handle src) {
  static const py::handle type = py::type::of<Tensor>();
  if (Py_TYPE(src.ptr()) != reinterpret_cast<PyTypeObject*>(type.ptr())) return nullptr;
  return py::cast<const Tensor*>(src);
}

DType dtype_named(const std::string& name, const char* what) {
  for (DType dtype : kAllDTypes)
    if (name == name_of(dtype)) return dtype;
  throw ArgumentError((what != nullptr ? std::string(what) + ": " : "") +
                      "expected a numeric dtype such as float32, bfloat16, int32 or uint8, got " +
                      io::quoted(name));
}

DType dtype_given(const py::object& dtype) {
  const char* where = "empty: dtype";
  if (py::isinstance<py::str>(dtype))
    return dtype_named(py::cast<Scalar<std::string>>(dtype).get("empty", "dtype"), where);
  try {
    const py::object numpy = py::module_::import("numpy").attr("dtype")(dtype);
    return dtype_named(py::cast<std::string>(numpy.attr("name")), where);
  } catch (const py::error_already_set& e) {
    if (!e.matches(PyExc_Exception)) throw;  // a KeyboardInterrupt
    throw TypeError("empty: dtype: expected a name or a numpy dtype, got " +
                    std::string(Py_TYPE(dtype.ptr())->tp_name));
  }
}

std::vector<int64_t> shape_given(const char* op, const py::object& shape) {
  try {
    return py::cast<std::vector<int64_t>>(shape);
  } catch (const py::cast_error&) {
    throw TypeError(std::string(op) + ": shape: expected integers of 64 bits");
  }
}

Device device_named(const std::string& name) {
  if (name == "cpu") return {};
  if (name == "cuda") return {DeviceType::kCuda, 0};
  if (name.rfind("cuda:", 0) == 0 && name.size() > 5 && name.size() <= 8 &&
      name.find_first_not_of("0123456789", 5) == std::string::npos)
    return {DeviceType::kCuda, std::stoi(name.substr(5))};
  throw ArgumentError("device: expected cpu, cuda or cuda:N, got " + io::quoted(name));
}

void bind_tensor(py::module_& m) {
  py::class_<Tensor>(
      m, "Tensor", "Memory on a device: dtype, shape, strides. Slices and reshapes share it.",
      py::custom_type_setup([](PyHeapTypeObject* type) { type->ht_type.tp_new = &refuse_to_make; }))
      .def_property_readonly("shape",
                             [](const Tensor& t) { return tuple_of(t.view.shape, t.view.rank); })
      .def_property_readonly("strides",
                             [](const Tensor& t) { return tuple_of(t.view.stride, t.view.rank); })
      .def_property_readonly("ndim", [](const Tensor& t) { return t.view.rank; })
      .def_property_readonly("dtype", [](const Tensor& t) { return numpy_dtype(t.view.dtype); })
      .def_property_readonly("dtype_name", [](const Tensor& t) { return name_of(t.view.dtype); })
      .def_property_readonly("device", [](const Tensor& t) { return to_string(t.view.device); })
      .def_property_readonly("nbytes", &Tensor::nbytes)
      .def_property_readonly("size", [](const Tensor& t) { return t.view.numel(); })
      .def("is_contiguous", &Tensor::is_contiguous)
      .def("numpy", &to_numpy)
      .def(
          "to",
          [](const Tensor& t, const Scalar<std::string>& device) {
            const Device to = device_named(device.get("to", "device"));
            if (to == t.view.device) return t;
            py::gil_scoped_release release;
            return copy_to(t, {to, nullptr});
          },
          py::arg("device"))
      .def("reshape",
           [](const Tensor& t, const py::args& shape) {
             const bool listed = shape.size() == 1 && !py::isinstance<py::int_>(shape[0]);
             return reshape(
                 t, shape_given("reshape", listed ? py::object(shape[0]) : py::object(shape)));
           })
      .def("__getitem__", &index)
      .def("__len__",
           [](const Tensor& t) {
             if (t.view.rank == 0) throw py::type_error("len() of a tensor of rank 0");
             return t.view.shape[0];
           })
      .def(
          "__array__",
          [](const Tensor& t, const py::object& dtype, const py::object& copy) {
            const py::object a = to_numpy(t);
            return py::module_::import("numpy").attr("array")(
                a, py::arg("dtype") = dtype,
                py::arg("copy") = copy.is_none() ? py::object(py::bool_(!dtype.is_none())) : copy);
          },
          py::arg("dtype") = py::none(), py::arg("copy") = py::none())
      .def(
          "__dlpack__",
          [](const Tensor& t, const py::object& stream, const py::object& max_version,
             const py::object& device,
             const py::object& copy) { return to_dlpack(t, stream, max_version, device, copy); },
          py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
          py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__",
           [](const Tensor& t) {
             const dlpack::DLDevice d = dl_device(t.view.device);
             return py::make_tuple(d.device_type, d.device_id);
           })
      .def("__repr__", &repr);

  m.def(
      "empty",
      [](const py::object& shape, const py::object& dtype, const Scalar<std::string>& device) {
        return empty(shape_given("empty", shape), dtype_given(dtype),
                     {device_named(device.get("empty", "device")), nullptr});
      },
      py::arg("shape"), py::arg("dtype"), py::arg("device") = "cpu",
      R"(An uninitialised tensor.

Args:
    shape: extents, each >= 0, at most 6 of them.
    dtype: a name such as ``"bfloat16"``, or a numpy dtype.
    device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

Raises:
    ArgumentError: a shape, dtype or device that does not exist.
    DeviceError: no such GPU on this machine, or a build that cannot use it.
    OutOfMemoryError: not enough memory on the device.)");
  m.def(
      "empty_like",
      [](const TensorView& like, const char* op, const char* argument) {
        // A view's own rank always fits: the check reports what is no tensor.
        Check(op).rank(argument, like, like.rank);
        return empty({like.shape, like.shape + like.rank}, like.dtype, {like.device, like.stream});
      },
      py::arg("like"), py::arg("op"), py::arg("argument"));
  m.def("from_numpy", &from_array, py::arg("array"), py::arg("device") = "cpu",
        R"(A copy of ``array`` on ``device``.

Args:
    array: numpy (bfloat16 through ml_dtypes) or anything with DLPack; any strides.
    device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

Raises:
    TypeError: not a tensor.
    ArgumentError: a dtype, device or layout that cannot be read.
    DeviceError: no such GPU on this machine, or a build that cannot use it.
    OutOfMemoryError: not enough memory on the device.)");
}

}  // namespace ernie::bindings
