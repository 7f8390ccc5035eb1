// What a runner asks of a GPU beside ops: its memory, copies that nobody waits for, and the wait.
#include <pybind11/pybind11.h>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/graph.h"
#include "core/memory.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_device(py::module_& m) {
  m.def(
      "empty_pinned",
      [](const py::object& shape, const py::object& dtype, const Scalar<std::string>& device) {
        return empty_pinned(shape_given("empty_pinned", shape), dtype_given(dtype),
                            device_named(device.get("empty_pinned", "device")));
      },
      py::arg("shape"), py::arg("dtype"), py::arg("device"));
  m.def(
      "queue_copy",
      [](const TensorView& to, const TensorView& from) {
        const Stream stream = stream_of({&to, &from});
        const py::gil_scoped_release release;
        queue_copy(to, from, stream);
      },
      py::arg("to"), py::arg("from_"));
  m.def(
      "synchronize",
      [](const Scalar<std::string>& device) {
        const Device on = device_named(device.get("synchronize", "device"));
        const py::gil_scoped_release release;
        synchronize(on);
      },
      py::arg("device"));
  m.def(
      "device_memory",
      [](const Scalar<std::string>& device) {
        const Device of = device_named(device.get("device_memory", "device"));
        const DeviceMemory memory = [&] {
          const py::gil_scoped_release release;
          return device_memory(of);
        }();
        return py::make_tuple(memory.free, memory.total);
      },
      py::arg("device"));
  m.def(
      "view_as",
      [](const Tensor& tensor, const Scalar<std::string>& dtype) {
        return view_as(tensor, dtype_named(dtype.get("view_as", "dtype"), "view_as: dtype"));
      },
      py::arg("tensor"), py::arg("dtype"));
}

}  // namespace ernie::bindings
