#include <pybind11/pybind11.h>

#include <cstring>
#include <new>

#include "bindings/scalar_caster.h"
#include "core/ceiling.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace ernie::bindings {
void bind_tensor(py::module_&);
void bind_attention(py::module_&);
void bind_attention_plan(py::module_&);
void bind_activation(py::module_&);
void bind_device(py::module_&);
void bind_embedding(py::module_&);
void bind_fused_moe(py::module_&);
void bind_gemm(py::module_&);
void bind_gemm_plan(py::module_&);
void bind_graph(py::module_&);
void bind_grouped_gemm(py::module_&);
void bind_kv_cache(py::module_&);
void bind_moe(py::module_&);
void bind_norm(py::module_&);
void bind_rope(py::module_&);
void bind_safetensors(py::module_&);
void bind_sampling(py::module_&);
void bind_vision(py::module_&);
void bind_wint4(py::module_&);
void bind_wint8(py::module_&);
}  // namespace ernie::bindings

namespace {

// The Python class of the same meaning, from ernie_kernels.errors.
void raise(const char* class_name, const char* message) {
  const py::object cls = py::module_::import("ernie_kernels.errors").attr(class_name);
  // What came from the environment need not be UTF-8.
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message, static_cast<py::ssize_t>(std::strlen(message)), "replace"));
  if (text) PyErr_SetObject(cls.ptr(), text.ptr());
}

void translate(std::exception_ptr p) {
  try {
    if (p) std::rethrow_exception(p);
  } catch (const ernie::ArgumentError& e) {
    raise("ArgumentError", e.what());
  } catch (const ernie::TypeError& e) {
    PyErr_SetString(PyExc_TypeError, e.what());
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError, "an argument has a type that cannot be used here");
  } catch (const ernie::UnsupportedError& e) {
    raise("UnsupportedError", e.what());
  } catch (const ernie::FormatError& e) {
    raise("FormatError", e.what());
  } catch (const ernie::DeviceError& e) {
    raise("DeviceError", e.what());
  } catch (const ernie::OutOfMemoryError& e) {
    raise("OutOfMemoryError", e.what());
  } catch (const std::bad_alloc&) {
    raise("OutOfMemoryError", "host memory: an allocation of the C++ runtime failed");
  }
}

// With what this module was built: for reports of trouble.
py::dict build_info() {
  py::dict info;
#ifdef __clang__
  info["compiler"] = "Clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "GCC " __VERSION__;
#else
  info["compiler"] = py::none();
#endif
  info["cuda"] = static_cast<bool>(ERNIE_WITH_CUDA);
#ifdef ERNIE_CUDA_COMPILER
  info["cuda_compiler"] = "nvcc " ERNIE_CUDA_COMPILER;
  info["cuda_architectures"] = ERNIE_CUDA_ARCHITECTURES;
#else
  info["cuda_compiler"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  py::list sanitizers;
#ifdef __SANITIZE_ADDRESS__
  sanitizers.append("address");
#endif
#ifdef __SANITIZE_THREAD__
  sanitizers.append("thread");
#endif
  info["sanitizers"] = sanitizers;
#ifdef ERNIE_SIMT
  info["simt"] = true;  // CUDA kernels on the tests' machine instead of a GPU
#else
  info["simt"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Private: the compiled ops. Use ernie_kernels.ops.";
  py::register_exception_translator(&translate);

  m.def("build_info", &build_info,
        "Compiler, CUDA compiler and architectures, sanitizers; None where there is none.");
  m.def(
      "has_cuda", [] { return static_cast<bool>(ERNIE_WITH_CUDA); },
      "Whether this build has the CUDA backend; device_count() says whether there is a GPU for "
      "it.");
  m.def(
      "device_count",
      [] {
#if ERNIE_WITH_CUDA
        return ernie::cuda::device_count();
#else
        return 0;
#endif
      },
      "GPUs that the CUDA backend can use: 0 in a build without it, or without a driver.");
  m.def(
      "cpu_tier", [] { return ernie::name_of(ernie::active_isa()); },
      "The CPU tier in use: portable, avx2, avx512 or avx512_bf16; ERNIE_CPU_ISA forces one.");
  m.def(
      "detected_cpu_tier", [] { return ernie::name_of(ernie::detected_isa()); },
      "The best CPU tier that this machine can run.");
  m.def("prefers_bf16_dot", &ernie::prefers_bf16_dot,
        "Whether the CPU multiplies bfloat16 operands by their dot product instruction.");
  m.def("num_threads", &ernie::num_threads, "Threads of the CPU backend.");
  m.def(
      "set_num_threads",
      [](ernie::bindings::Scalar<int64_t> n) {
        ernie::set_num_threads(n.get("set_num_threads", "n"));
      },
      py::arg("n"),
      "Use n threads on the CPU from the next op on: 1 to 1024, else ArgumentError. Results do "
      "not depend on it. ERNIE_NUM_THREADS sets the first value; all cores are the default.");
  m.def("measure_read_bandwidth", &ernie::measure_read_bandwidth, py::arg("nbytes"),
        py::call_guard<py::gil_scoped_release>());
  m.def("cpu_bytes_allocated", &ernie::cpu_bytes_allocated);
  m.def("cpu_bytes_peak", &ernie::cpu_bytes_peak);
  m.def("reset_cpu_bytes_peak", &ernie::reset_cpu_bytes_peak);

  ernie::bindings::bind_tensor(m);
  ernie::bindings::bind_attention(m);
  ernie::bindings::bind_attention_plan(m);
  ernie::bindings::bind_activation(m);
  ernie::bindings::bind_device(m);
  ernie::bindings::bind_embedding(m);
  ernie::bindings::bind_fused_moe(m);
  ernie::bindings::bind_gemm(m);
  ernie::bindings::bind_gemm_plan(m);
  ernie::bindings::bind_graph(m);
  ernie::bindings::bind_grouped_gemm(m);
  ernie::bindings::bind_kv_cache(m);
  ernie::bindings::bind_moe(m);
  ernie::bindings::bind_norm(m);
  ernie::bindings::bind_rope(m);
  ernie::bindings::bind_safetensors(m);
  ernie::bindings::bind_sampling(m);
  ernie::bindings::bind_vision(m);
  ernie::bindings::bind_wint4(m);
  ernie::bindings::bind_wint8(m);
}
