#include "ops/norm.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_norm(py::module_& m) {
  m.def(
      "rms_norm",
      [](TensorView out, TensorView x, TensorView weight, Scalar<float> eps) {
        run(rms_norm, {.out = out, .x = x, .weight = weight, .eps = eps.get("rms_norm", "eps")},
            {&out, &x, &weight});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def(
      "add_rms_norm",
      [](TensorView out, TensorView residual, TensorView x, TensorView weight, Scalar<float> eps) {
        run(add_rms_norm,
            {.out = out,
             .residual = residual,
             .x = x,
             .weight = weight,
             .eps = eps.get("add_rms_norm", "eps")},
            {&out, &residual, &x, &weight});
      },
      py::arg("out"), py::arg("residual"), py::arg("x"), py::arg("weight"), py::arg("eps"));
  m.def(
      "layer_norm",
      [](TensorView out, TensorView x, TensorView weight, TensorView bias, Scalar<float> eps) {
        run(layer_norm,
            {.out = out,
             .x = x,
             .weight = weight,
             .bias = bias,
             .eps = eps.get("layer_norm", "eps")},
            {&out, &x, &weight, &bias});
      },
      py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"));
  m.def(
      "add_layer_norm",
      [](TensorView out, TensorView residual, TensorView x, TensorView weight, TensorView bias,
         Scalar<float> eps) {
        run(add_layer_norm,
            {.out = out,
             .residual = residual,
             .x = x,
             .weight = weight,
             .bias = bias,
             .eps = eps.get("add_layer_norm", "eps")},
            {&out, &residual, &x, &weight, &bias});
      },
      py::arg("out"), py::arg("residual"), py::arg("x"), py::arg("weight"), py::arg("bias"),
      py::arg("eps"));
}

}  // namespace ernie::bindings
