#include "io/safetensors.h"

#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/error.h"
#include "core/storage.h"
#include "io/nonfinite.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using io::SafetensorsEntry;
using io::SafetensorsFile;

py::str to_str(std::string_view text) { return py::str(text.data(), text.size()); }

py::tuple shape_of(const SafetensorsEntry& entry) {
  py::tuple shape(entry.rank);
  for (int i = 0; i < entry.rank; ++i) shape[i] = entry.shape[static_cast<size_t>(i)];
  return shape;
}

const SafetensorsEntry& entry_named(const SafetensorsFile& file, const std::string& name) {
  if (const SafetensorsEntry* entry = file.header().find(name)) return *entry;
  throw py::key_error(file.name() + " has no tensor " + io::quoted(name));
}

// 8-bit floats travel as bytes. Throws UnsupportedError for what no Tensor can hold.
DType tensor_dtype(const SafetensorsEntry& entry) {
  static constexpr std::pair<std::string_view, DType> kSame[] = {
      {"F64", DType::kF64},    {"F32", DType::kF32},    {"F16", DType::kF16},
      {"BF16", DType::kBF16},  {"I64", DType::kI64},    {"I32", DType::kI32},
      {"I16", DType::kI16},    {"I8", DType::kI8},      {"U64", DType::kU64},
      {"U32", DType::kU32},    {"U16", DType::kU16},    {"U8", DType::kU8},
      {"BOOL", DType::kBool},  {"F8_E4M3", DType::kU8}, {"F8_E5M2", DType::kU8},
      {"F8_E8M0", DType::kU8},
  };
  for (const auto& [name, dtype] : kSame)
    if (name == entry.dtype->name) return dtype;
  throw UnsupportedError("tensor " + io::quoted(entry.name) + ": no Tensor holds dtype " +
                         std::string(entry.dtype->name));
}

void check_host(const Check& check, const char* name, const TensorView& view) {
  check.contiguous(name, view);
  check.device({}, {{name, &view}});
}

void read_into(const SafetensorsFile& file, const std::string& name, const TensorView& out,
               uint64_t offset) {
  const SafetensorsEntry& entry = entry_named(file, name);
  const Check check("read_into");
  check_host(check, "out", out);
  check.writable("out", out);
  py::gil_scoped_release release;
  file.read(entry, out.data, offset, static_cast<uint64_t>(out.numel() * size_of(out.dtype)));
}

Tensor read(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry& entry = entry_named(file, name);
  const DType dtype = tensor_dtype(entry);
  py::gil_scoped_release release;
  Tensor tensor = empty({entry.shape.begin(), entry.shape.begin() + entry.rank}, dtype, {});
  file.read(entry, tensor.view.data, 0, entry.nbytes());
  return tensor;
}

py::tuple count_nonfinite(const TensorView& values) {
  const Check check("count_nonfinite");
  check.dtype("values", values, {DType::kF32, DType::kF16, DType::kBF16});
  check_host(check, "values", values);
  io::NonFinite found;
  {
    py::gil_scoped_release release;
    const int64_t count = values.numel();
    found = values.dtype == DType::kF32
                ? io::find_nonfinite_f32(values.ptr<uint32_t>(), count)
                : io::find_nonfinite_16(values.ptr<uint16_t>(), count,
                                        values.dtype == DType::kBF16 ? 0x7f80 : 0x7c00);
  }
  return py::make_tuple(found.count, found.first);
}

}  // namespace

void bind_safetensors(py::module_& m) {
  const io::SafetensorsLimits defaults;
  py::class_<SafetensorsFile>(
      m, "SafetensorsFile", "A validated safetensors file. Raises FormatError when it is not one.")
      .def(py::init([](const py::bytes& path, uint64_t max_header_bytes, uint64_t max_tensors,
                       uint64_t max_name_bytes) {
             const std::string native = path;
             py::gil_scoped_release release;
             return std::make_unique<SafetensorsFile>(
                 native, io::SafetensorsLimits{max_header_bytes, max_tensors, max_name_bytes});
           }),
           py::arg("path"), py::kw_only(), py::arg("max_header_bytes") = defaults.max_header_bytes,
           py::arg("max_tensors") = defaults.max_tensors,
           py::arg("max_name_bytes") = defaults.max_name_bytes)
      .def_property_readonly("nbytes", &SafetensorsFile::size, "Size of the file.")
      .def_property_readonly("names",
                             [](const SafetensorsFile& file) {
                               py::list names;
                               for (const auto& entry : file.header().entries())
                                 names.append(to_str(entry.name));
                               return names;
                             })
      .def_property_readonly("metadata",
                             [](const SafetensorsFile& file) {
                               py::dict metadata;
                               for (const auto& [key, value] : file.header().metadata())
                                 metadata[to_str(key)] = to_str(value);
                               return metadata;
                             })
      .def(
          "info",
          [](const SafetensorsFile& file, const std::string& name) {
            const SafetensorsEntry& entry = entry_named(file, name);
            return py::make_tuple(to_str(entry.dtype->name), shape_of(entry), entry.nbytes());
          },
          py::arg("name"), "(dtype as in the file, shape, bytes)")
      .def("read_into", &read_into, py::arg("name"), py::arg("out"), py::arg("offset") = 0,
           "Fills `out` with the tensor's stored bytes from byte `offset` on, whatever its dtype.")
      .def("read", &read, py::arg("name"), "The tensor in memory of its own.");
  m.def("count_nonfinite", &count_nonfinite, py::arg("values"),
        "(how many values are NaN or infinite, flat index of the first or -1)");
}

}  // namespace ernie::bindings
