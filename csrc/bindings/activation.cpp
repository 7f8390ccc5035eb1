#include "ops/activation.h"

#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_activation(py::module_& m) {
  m.def(
      "silu_and_mul_out",
      [](TensorView x) {
        Check("silu_and_mul").rank("x", x, 2);
        return empty({x.size(0), x.size(1) / 2}, x.dtype, stream_of({&x}));
      },
      py::arg("x"));
  m.def(
      "silu_and_mul",
      [](TensorView out, TensorView x) { run(silu_and_mul, {.out = out, .x = x}, {&out, &x}); },
      py::arg("out"), py::arg("x"));
  m.def(
      "gelu", [](TensorView out, TensorView x) { run(gelu, {.out = out, .x = x}, {&out, &x}); },
      py::arg("out"), py::arg("x"));
  m.def(
      "quick_gelu",
      [](TensorView out, TensorView x) { run(quick_gelu, {.out = out, .x = x}, {&out, &x}); },
      py::arg("out"), py::arg("x"));
}

}  // namespace ernie::bindings
