// What quantizing and packing have alike in bindings: wint8.cpp and wint4.cpp.
#pragma once

#include <vector>

#include "bindings/linear_outputs.h"

namespace ernie::bindings {

// Of `columns` elements in a plain row.
inline std::vector<int64_t> packed_shape(int64_t out_features, int64_t columns) {
  return {ceil_div(out_features, kPackedRows), ceil_div(columns, 4), kPackedRows, 4};
}

// The rounded weight, an element of `dtype` for every `per_element` columns; the scales,
// out_features, in_features.
inline pybind11::tuple quantize_out(const char* op, DType dtype, int64_t per_element,
                                    const TensorView& weight, const Scalar<bool>& pack) {
  Check(op).rank("weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1), columns = ceil_div(k, per_element);
  const Stream stream = stream_of({&weight});
  const auto shape =
      pack.get(op, "pack") ? packed_shape(n, columns) : std::vector<int64_t>{n, columns};
  return pybind11::make_tuple(empty(shape, dtype, stream), empty({n}, DType::kF32, stream), n, k);
}

// One op under two names: whether it packs, the shape of `out` says.
template <class Args>
void def_quantize(pybind11::module_& m, std::initializer_list<const char*> names,
                  void (*op)(const Args&, const Stream&)) {
  namespace py = pybind11;
  for (const char* name : names)
    m.def(
        name,
        [op](TensorView out, TensorView scale, TensorView weight) {
          run(op, {.out = out, .scale = scale, .weight = weight}, {&out, &scale, &weight});
        },
        py::arg("out"), py::arg("scale"), py::arg("weight"));
}

template <class Args>
void def_pack(pybind11::module_& m, const char* name, void (*op)(const Args&, const Stream&)) {
  namespace py = pybind11;
  m.def(
      name,
      [op](TensorView out, TensorView weight) {
        run(op, {.out = out, .weight = weight}, {&out, &weight});
      },
      py::arg("out"), py::arg("weight"));
}

}  // namespace ernie::bindings
