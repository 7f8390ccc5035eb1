// The Python class Tensor, and what other binding files need of it.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/storage.h"

namespace ernie::bindings {

// The C++ tensor behind a Python one; null when `src` is something else.
const Tensor* as_tensor(pybind11::handle src);

// "bfloat16" -> DType::kBF16. `what` opens the error message; may be null.
DType dtype_named(const std::string& name, const char* what);

// What empty() takes; both throw TypeError or ArgumentError.
DType dtype_given(const pybind11::object& dtype);
std::vector<int64_t> shape_given(const char* op, const pybind11::object& shape);

// "cpu", "cuda" or "cuda:1".
Device device_named(const std::string& name);

}  // namespace ernie::bindings
