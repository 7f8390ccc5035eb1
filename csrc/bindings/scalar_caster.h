// Number arguments of ops. pybind11's own message for a wrong one shows all arguments' contents;
// Number takes anything and reports what is no number with the argument's name, as Check does for
// tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>

#include "core/error.h"

namespace ernie::bindings {

template <class T>  // float or int64_t
struct Number {
  T value{};
  const char* not_a_number = nullptr;  // the Python type that came instead
  bool too_large = false;              // an integer beyond 64 bits

  T get(const char* op, const char* name) const {
    if (not_a_number == nullptr && !too_large) return value;
    const std::string where = std::string(op) + ": " + name + ": expected ";
    if (too_large) throw ArgumentError(where + "an integer of 64 bits, got a larger one");
    throw TypeError(where + (std::is_integral_v<T> ? "an integer" : "a number") + ", got " +
                    not_a_number);
  }
};

}  // namespace ernie::bindings

namespace pybind11::detail {

template <class T>
struct type_caster<ernie::bindings::Number<T>> {
  PYBIND11_TYPE_CASTER(ernie::bindings::Number<T>,
                       const_name<std::is_integral_v<T>>("int", "float"));

  bool load(handle src, bool) {
    if constexpr (std::is_integral_v<T>) {
      const object index = reinterpret_steal<object>(PyNumber_Index(src.ptr()));
      int overflow = 0;
      if (index) value.value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      value.too_large = overflow != 0;
    } else {
      value.value = static_cast<T>(PyFloat_AsDouble(src.ptr()));
    }
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      value.not_a_number = Py_TYPE(src.ptr())->tp_name;
    }
    return true;
  }
};

}  // namespace pybind11::detail
