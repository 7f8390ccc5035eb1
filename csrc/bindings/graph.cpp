#include "core/graph.h"

#include <pybind11/pybind11.h>

#include <memory>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_graph(py::module_& m) {
  py::class_<Graph>(m, "Graph", "What a function queues on a GPU, to be repeated by one launch.")
      .def(py::init([](const Scalar<std::string>& device, const py::function& record) {
             GraphCapture capture(device_named(device.get("Graph", "device")));
             record();
             const py::gil_scoped_release release;
             return capture.finish();
           }),
           py::arg("device"), py::arg("record"),
           R"(Calls ``record`` and keeps what this thread queues meanwhile on the device's default
stream, instead of doing it. Whoever keeps the graph keeps the tensors that ``record`` used.

Raises:
    UnsupportedError: ``record`` allocates device memory, waits for the GPU or launches a graph, or
        the GPU cannot capture.
    DeviceError, OutOfMemoryError: a call of the CUDA runtime failed.)")
      .def("launch", &Graph::launch, py::call_guard<py::gil_scoped_release>());
}

}  // namespace ernie::bindings
