#include "ops/vision.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "ops/vision_index.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using Number = Scalar<int64_t>;
using Name = Scalar<std::string>;

// What an op that allocates its output was told about it.
DType float_dtype(const char* op, const Name& dtype) {
  const DType type = dtype_named(dtype.get(op, "dtype"), (std::string(op) + ": dtype").c_str());
  if (type != DType::kF32 && type != DType::kBF16)
    Check(op).fail("dtype", "float32 or bfloat16", name_of(type));
  return type;
}

Tensor image_patches_out(const TensorView& pixels, const TensorView& grid_thw,
                         const Number& patch_size, const Number& merge_size, const Name& dtype) {
  const char* op = "image_patches";
  const int64_t size = patch_size.get(op, "patch_size");
  const int64_t rows = count_patches(op, pixels, grid_thw, size, merge_size.get(op, "merge_size"));
  return empty({rows, kPixelChannels * size * size}, float_dtype(op, dtype), stream_of({&pixels}));
}

// out, and where the device needs it room for some patches.
py::tuple patch_embed_out(const TensorView& pixels, const TensorView& weight,
                          const TensorView& grid_thw, std::optional<int64_t> embed_dim,
                          const Number& patch_size, const Number& merge_size,
                          const std::optional<Name>& dtype) {
  // A launch for each so many: enough to fill a GPU, and so few that they are read from L2.
  constexpr int64_t kMostRows = 16384;
  const char* op = "patch_embed";
  const Check check(op);
  const int64_t size = patch_size.get(op, "patch_size");
  const int64_t rows = count_patches(op, pixels, grid_thw, size, merge_size.get(op, "merge_size"));
  if (!embed_dim) {
    check.rank("weight", weight, 2);
    embed_dim = weight.size(0);
  }
  check.dtype("weight", weight, {DType::kF32, DType::kBF16});
  const DType wanted = dtype ? float_dtype(op, *dtype) : weight.dtype;
  if (weight.dtype == DType::kF32 && wanted != DType::kF32)
    check.fail("dtype", "float32 beside a float32 weight", name_of(wanted));
  const Stream stream = stream_of({&pixels, &weight});
  py::object patches = py::none();
  if (stream.device.type == DeviceType::kCuda)
    patches = py::cast(empty(
        {std::clamp<int64_t>(rows, 1, kMostRows), kPixelChannels * size * size}, wanted, stream));
  return py::make_tuple(empty({rows, *embed_dim}, wanted, stream), patches);
}

Tensor temporal_merge_out(const TensorView& x, const TensorView& grid_thw, const Number& merge_size,
                          const Number& temporal_size) {
  const int64_t parts = temporal_size.get("temporal_merge", "temporal_size");
  const int64_t rows =
      count_merged_rows(x, grid_thw, merge_size.get("temporal_merge", "merge_size"), parts);
  return empty({rows, parts * x.size(1)}, x.dtype, stream_of({&x}));
}

void bind_patches(py::module_& m) {
  m.def("image_patches_out", &image_patches_out, py::arg("pixels"), py::arg("grid_thw"),
        py::arg("patch_size"), py::arg("merge_size"), py::arg("dtype"));
  m.def(
      "image_patches",
      [](TensorView out, TensorView pixels, TensorView grid_thw, TensorView levels,
         Number patch_size, Number merge_size) {
        run(image_patches,
            {.out = out,
             .pixels = pixels,
             .grid_thw = grid_thw,
             .levels = levels,
             .patch_size = patch_size.get("image_patches", "patch_size"),
             .merge_size = merge_size.get("image_patches", "merge_size")},
            {&out, &pixels, &levels});
      },
      py::arg("out"), py::arg("pixels"), py::arg("grid_thw"), py::arg("levels"),
      py::arg("patch_size"), py::arg("merge_size"));
  m.def("patch_embed_out", &patch_embed_out, py::arg("pixels"), py::arg("weight"),
        py::arg("grid_thw"), py::arg("embed_dim"), py::arg("patch_size"), py::arg("merge_size"),
        py::arg("dtype"));
  m.def(
      "patch_embed",
      [](TensorView out, TensorView pixels, TensorView weight, TensorView grid_thw,
         TensorView levels, std::optional<TensorView> patches, Number patch_size,
         Number merge_size) {
        run(patch_embed,
            {.out = out,
             .pixels = pixels,
             .weight = weight,
             .grid_thw = grid_thw,
             .levels = levels,
             .patches = patches,
             .patch_size = patch_size.get("patch_embed", "patch_size"),
             .merge_size = merge_size.get("patch_embed", "merge_size")},
            {&out, &pixels, &weight, &levels, pointer_to(patches)});
      },
      py::arg("out"), py::arg("pixels"), py::arg("weight"), py::arg("grid_thw"), py::arg("levels"),
      py::arg("patches"), py::arg("patch_size"), py::arg("merge_size"));
}

void bind_rows(py::module_& m) {
  m.def("temporal_merge_out", &temporal_merge_out, py::arg("x"), py::arg("grid_thw"),
        py::arg("merge_size"), py::arg("temporal_size"));
  m.def(
      "temporal_merge",
      [](TensorView out, TensorView x, TensorView grid_thw, Number merge_size,
         Number temporal_size) {
        run(temporal_merge,
            {.out = out,
             .x = x,
             .grid_thw = grid_thw,
             .merge_size = merge_size.get("temporal_merge", "merge_size"),
             .temporal_size = temporal_size.get("temporal_merge", "temporal_size")},
            {&out, &x});
      },
      py::arg("out"), py::arg("x"), py::arg("grid_thw"), py::arg("merge_size"),
      py::arg("temporal_size"));
  m.def(
      "scatter_rows",
      [](TensorView out, TensorView x, TensorView rows) {
        run(scatter_rows, {.out = out, .x = x, .rows = rows}, {&out, &x, &rows});
      },
      py::arg("out"), py::arg("x"), py::arg("rows"));
}

// The index arithmetic of both backends, for tests: what it takes from an op that has checked it.
int64_t within(const Check& check, const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    check.fail(name, std::to_string(low) + " to " + std::to_string(high), std::to_string(value));
  return value;
}

// *product times the factors, each from 1 on, and 63 bits at most.
void multiply(const Check& check, int64_t* product,
              std::initializer_list<std::pair<const char*, int64_t>> factors) {
  for (const auto& [name, factor] : factors)
    *product *= within(check, name, factor, 1, std::numeric_limits<int64_t>::max() / *product);
}

py::tuple patch_place(int64_t first, int64_t rows, int64_t columns, int64_t patch,
                      int64_t patch_size, int64_t merge_size) {
  const Check check("patch_place");
  int64_t bytes = kPixelChannels;
  multiply(check, &bytes, {{"patch_size", patch_size}, {"patch_size", patch_size}});
  const int64_t most = std::numeric_limits<int64_t>::max() / bytes / 4;
  int64_t frame = 1;
  multiply(check, &frame, {{"rows", rows}, {"columns", columns}});
  within(check, "rows", frame, 1, most);
  within(check, "merge_size", merge_size, 1, std::min(rows, columns));
  within(check, "patch", patch, 0, most);
  within(check, "first", first, 0, patch);
  const PatchPlace place = place_of_patch({first, rows, columns}, patch, patch_size, merge_size);
  return py::make_tuple(place.first_byte, place.row_bytes);
}

int64_t merged_source(int64_t first, int64_t first_source, int64_t frames, int64_t frame_rows,
                      int64_t row, int64_t part, int64_t temporal_size) {
  const Check check("merged_source");
  int64_t source_rows = 1;
  multiply(check, &source_rows, {{"frames", frames}, {"frame_rows", frame_rows}});
  const int64_t most = std::numeric_limits<int64_t>::max() - source_rows;
  within(check, "first_source", first_source, 0, most);
  within(check, "first", first, 0, most);
  within(check, "temporal_size", temporal_size, 1, std::max<int64_t>(frames, 1024));
  within(check, "part", part, 0, temporal_size - 1);
  const int64_t merged = frames == 1 ? 1 : frames / temporal_size;
  within(check, "row", row, first, first + merged * frame_rows - 1);
  return source_of_merged({first, first_source, frames, frame_rows}, row, part, temporal_size);
}

void bind_index(py::module_& m) {
  m.def("patch_place", &patch_place, py::kw_only(), py::arg("first"), py::arg("rows"),
        py::arg("columns"), py::arg("patch"), py::arg("patch_size"), py::arg("merge_size"));
  m.def("merged_source", &merged_source, py::kw_only(), py::arg("first"), py::arg("first_source"),
        py::arg("frames"), py::arg("frame_rows"), py::arg("row"), py::arg("part"),
        py::arg("temporal_size"));
}

}  // namespace

void bind_vision(py::module_& m) {
  bind_patches(m);
  bind_rows(m);
  bind_index(m);
}

}  // namespace ernie::bindings
