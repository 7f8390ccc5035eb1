// Arguments of ops that are no tensors: numbers, flags, names. pybind11's own message for a wrong
// one shows all arguments' contents; Scalar takes anything and reports what does not fit with the
// argument's name, as Check does for tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <type_traits>

#include "core/error.h"

namespace ernie::bindings {

template <class T>  // float, int64_t, bool or std::string
struct Scalar {
  T value{};
  const char* wrong_type = nullptr;  // the Python type that came instead
  const char* unusable = nullptr;    // what cannot be held: "expected X, got Y"

  T get(const char* op, const char* name) const {
    if (wrong_type == nullptr && unusable == nullptr) return value;
    const std::string where = std::string(op) + ": " + name + ": ";
    if (unusable != nullptr) throw ArgumentError(where + unusable);
    throw TypeError(where + "expected " + expected() + ", got " + wrong_type);
  }

 private:
  static constexpr const char* expected() {
    if constexpr (std::is_same_v<T, bool>) return "True or False";
    if constexpr (std::is_same_v<T, std::string>) return "a string";
    return std::is_same_v<T, float> ? "a number" : "an integer";
  }
};

}  // namespace ernie::bindings

namespace pybind11::detail {

template <class T>
struct type_caster<ernie::bindings::Scalar<T>> {
  static constexpr auto kName = [] {
    if constexpr (std::is_same_v<T, bool>)
      return const_name("bool");
    else if constexpr (std::is_same_v<T, std::string>)
      return const_name("str");
    else
      return const_name<std::is_same_v<T, int64_t>>("int", "float");
  }();
  PYBIND11_TYPE_CASTER(ernie::bindings::Scalar<T>, kName);

  bool load(handle src, bool) {
    const char* type = Py_TYPE(src.ptr())->tp_name;
    if (!read(src)) value.wrong_type = type;
    if (PyErr_Occurred() != nullptr) PyErr_Clear();
    return true;
  }

 private:
  // False for an object of another type; may leave a Python error.
  bool read(handle src) {
    if constexpr (std::is_same_v<T, bool>) {
      value.value = src.ptr() == Py_True;
      if (PyBool_Check(src.ptr())) return true;
      const char* type = Py_TYPE(src.ptr())->tp_name;
      const bool from_numpy =
          std::strcmp(type, "numpy.bool") == 0 || std::strcmp(type, "numpy.bool_") == 0;
      value.value = from_numpy && PyObject_IsTrue(src.ptr()) == 1;
      return from_numpy;
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!PyUnicode_Check(src.ptr())) return false;
      Py_ssize_t length = 0;
      const char* text = PyUnicode_AsUTF8AndSize(src.ptr(), &length);
      if (text == nullptr)
        value.unusable = "expected text that UTF-8 can encode, got a lone surrogate";
      else
        value.value.assign(text, static_cast<size_t>(length));
      return true;
    } else if constexpr (std::is_same_v<T, int64_t>) {
      const object index = reinterpret_steal<object>(PyNumber_Index(src.ptr()));
      if (!index) return false;
      int overflow = 0;
      value.value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow != 0) value.unusable = "expected an integer of 64 bits, got a larger one";
      return true;
    } else {
      value.value = static_cast<T>(PyFloat_AsDouble(src.ptr()));
      return PyErr_Occurred() == nullptr;
    }
  }
};

}  // namespace pybind11::detail
