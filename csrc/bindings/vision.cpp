#include "ops/vision.h"

#include <algorithm>

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

Tensor image_patches_out(const TensorView& pixels, const TensorView& grid_thw,
                         const Number& patch_size, const Number& merge_size, const Name& dtype) {
  const char* op = "image_patches";
  const int64_t size = patch_size.get(op, "patch_size");
  const int64_t rows = count_patches(op, pixels, grid_thw, size, merge_size.get(op, "merge_size"));
  return empty({rows, kPixelChannels * size * size},
               dtype_named(dtype.get(op, "dtype"), "image_patches: dtype"), stream_of({&pixels}));
}

// out, and where the device needs it room for some patches.
py::tuple patch_embed_out(const TensorView& pixels, const TensorView& weight,
                          const TensorView& grid_thw, std::optional<int64_t> embed_dim,
                          const Number& patch_size, const Number& merge_size,
                          const std::optional<Name>& dtype) {
  // A launch for each so many: enough to fill a GPU, and so few that they are read from L2.
  constexpr int64_t kMostRows = 16384;
  const char* op = "patch_embed";
  const int64_t size = patch_size.get(op, "patch_size");
  const int64_t rows = count_patches(op, pixels, grid_thw, size, merge_size.get(op, "merge_size"));
  if (!embed_dim) {
    Check(op).rank("weight", weight, 2);
    embed_dim = weight.size(0);
  }
  const DType wanted =
      dtype ? dtype_named(dtype->get(op, "dtype"), "patch_embed: dtype") : weight.dtype;
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

}  // namespace

void bind_vision(py::module_& m) {
  bind_patches(m);
  bind_rows(m);
}

}  // namespace ernie::bindings
