#include "ops/vision.h"

#include <limits>
#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/linear_checks.h"
#include "ops/vision_index.h"

namespace ernie {
namespace {

// Sizes of patches and blocks: far beyond any model's, and no product of them overflows.
constexpr int64_t kMaxSize = 1024;

void check_size(const Check& check, const char* name, int64_t size) {
  if (size < 1 || size > kMaxSize)
    check.fail(name, "a value from 1 to " + std::to_string(kMaxSize), std::to_string(size));
}

int64_t patch_width(int64_t patch_size) { return kPixelChannels * patch_size * patch_size; }

// *sum += a * b, unless 64 bits do not hold it.
bool checked_add_product(int64_t a, int64_t b, int64_t* sum) {
  int64_t product;
  return checked_mul(a, b, &product) && !__builtin_add_overflow(*sum, product, sum);
}

// Calls accept(t, rows, columns, refuse) for each item, rows and columns of blocks; `refuse` says
// what was expected instead. False is a grid too large.
template <class F>
void for_each_item(const Check& check, const TensorView& grid, int64_t merge_size, const char* what,
                   const F& accept) {
  check.rank("grid_thw", grid, 2);
  check.shape("grid_thw", grid, {{"num_items", grid.size(0)}, {"t, gh, gw", 3}});
  check.dtype("grid_thw", grid, {DType::kI64});
  check.contiguous("grid_thw", grid);
  if (grid.device.type != DeviceType::kCpu)
    check.fail("grid_thw", "a tensor on the host", to_string(grid.device));
  for (int64_t item = 0; item < grid.size(0); ++item) {
    const int64_t* extents = grid.ptr<int64_t>() + 3 * item;
    const auto refuse = [&](const std::string& expected) {
      check.fail("grid_thw", expected,
                 "(" + std::to_string(extents[0]) + ", " + std::to_string(extents[1]) + ", " +
                     std::to_string(extents[2]) + ") at item " + std::to_string(item));
    };
    if (extents[0] < 1) refuse("1 frame or more");
    for (int dim : {1, 2})
      if (extents[dim] < 1 || extents[dim] % merge_size != 0)
        refuse("rows and columns that are multiples of merge_size=" + std::to_string(merge_size));
    if (!accept(extents[0], extents[1] / merge_size, extents[2] / merge_size, refuse))
      refuse(std::string("items of fewer than 2**63 ") + what + " in all");
  }
}

// What image_patches and patch_embed have in common.
template <class Args>
void check_patches(const Check& check, const char* op, const Args& a, const char* columns_name,
                   int64_t columns, const Stream& stream) {
  const int64_t num_patches = count_patches(op, a.pixels, a.grid_thw, a.patch_size, a.merge_size);
  check.shape("levels", a.levels, {{"channels", kPixelChannels}, {"levels", 256}});
  check.dtype("levels", a.levels, {DType::kF32});
  check.contiguous("levels", a.levels);
  check.shape("out", a.out, {{"num_patches", num_patches}, {columns_name, columns}});
  check.dtype("out", a.out, {DType::kF32, DType::kBF16});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "pixels", a.pixels);
  check.disjoint("out", a.out, "grid_thw", a.grid_thw);
  check.disjoint("out", a.out, "levels", a.levels);
  check.device(stream.device, {{"out", &a.out}, {"pixels", &a.pixels}, {"levels", &a.levels}});
}

// Where CUDA keeps some patches.
void check_room(const Check& check, const PatchEmbedArgs& a, int64_t width, const Stream& stream) {
  if (a.patches) {
    const TensorView& room = *a.patches;
    check.rank("patches", room, 2);
    check.shape("patches", room, {{"rows", room.size(0)}, {"3 * patch_size**2", width}});
    check.dtype("patches", room, {a.out.dtype});
    check.inner_contiguous("patches", room);
    check.writable("patches", room);
    check.disjoint("patches", room, "out", a.out);
    check.disjoint("patches", room, "pixels", a.pixels);
    check.disjoint("patches", room, "weight", a.weight);
    check.disjoint("patches", room, "grid_thw", a.grid_thw);
    check.disjoint("patches", room, "levels", a.levels);
    check.device(stream.device, {{"patches", &room}});
  }
  if (stream.device.type == DeviceType::kCuda && (!a.patches || a.patches->size(0) == 0))
    check.fail("patches", "[1 or more, 3 * patch_size**2] on a CUDA device",
               a.patches ? "shape " + shape_string(*a.patches) : "none");
}

}  // namespace

int64_t count_patches(const char* op, const TensorView& pixels, const TensorView& grid_thw,
                      int64_t patch_size, int64_t merge_size) {
  const Check check(op);
  check_size(check, "patch_size", patch_size);
  check_size(check, "merge_size", merge_size);
  const int64_t block = merge_size * merge_size, patch_bytes = patch_width(patch_size);
  int64_t num_patches = 0;
  for_each_item(check, grid_thw, merge_size, "bytes of pixels",
                [&](int64_t frames, int64_t rows, int64_t columns, const auto&) {
                  int64_t blocks = 0, patches, bytes;
                  return checked_mul(rows, columns, &blocks) &&
                         checked_mul(blocks, block, &patches) &&
                         checked_add_product(frames, patches, &num_patches) &&
                         checked_mul(num_patches, patch_bytes, &bytes);
                });
  check.rank("pixels", pixels, 1);
  check.dtype("pixels", pixels, {DType::kU8});
  check.shape("pixels", pixels, {{"bytes of the items of grid_thw", num_patches * patch_bytes}});
  check.contiguous("pixels", pixels);
  return num_patches;
}

int64_t count_merged_rows(const TensorView& x, const TensorView& grid_thw, int64_t merge_size,
                          int64_t temporal_size) {
  const Check check("temporal_merge");
  check_size(check, "merge_size", merge_size);
  check_size(check, "temporal_size", temporal_size);
  int64_t num_rows = 0, num_tokens = 0;
  for_each_item(
      check, grid_thw, merge_size, "rows",
      [&](int64_t frames, int64_t rows, int64_t columns, const auto& refuse) {
        if (frames > 1 && frames % temporal_size != 0)
          refuse("1 frame, or a multiple of temporal_size=" + std::to_string(temporal_size));
        const int64_t merged = frames == 1 ? 1 : frames / temporal_size;
        int64_t blocks;
        return checked_mul(rows, columns, &blocks) &&
               checked_add_product(frames, blocks, &num_rows) &&
               checked_add_product(merged, blocks, &num_tokens);
      });
  check.rank("x", x, 2);
  check.shape("x", x, {{"blocks of grid_thw", num_rows}, {"hidden_size", x.size(1)}});
  if (x.size(1) > std::numeric_limits<int64_t>::max() / temporal_size)
    check.fail("x", "rows that can be put side by side", "shape " + shape_string(x));
  return num_tokens;
}

void image_patches(const ImagePatchesArgs& a, const Stream& stream) {
  const Check check("image_patches");
  check_size(check, "patch_size", a.patch_size);
  check_patches(check, "image_patches", a, "3 * patch_size**2", patch_width(a.patch_size), stream);
  if (a.out.numel() == 0) return;
  dispatch("image_patches", {&cpu::image_patches, ERNIE_CUDA_FN(cuda::image_patches)}, a, stream);
}

void patch_embed(const PatchEmbedArgs& a, const Stream& stream) {
  const Check check("patch_embed");
  check_size(check, "patch_size", a.patch_size);
  check.rank("out", a.out, 2);
  // Rows of a plain weight are columns of out; panels are padded, and may have fewer.
  const int64_t embed_dim = a.weight.rank == 2 ? a.weight.size(0) : a.out.size(1);
  const int64_t width = patch_width(a.patch_size);
  check_patches(check, "patch_embed", a, "embed_dim", embed_dim, stream);
  check_float_weight(check, a.weight, embed_dim, width);
  if (a.weight.dtype == DType::kF32) check.dtype("out", a.out, {DType::kF32});
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device, {{"weight", &a.weight}});
  check_unpacked_on_cuda(check, a.weight, stream);
  check_room(check, a, width, stream);
  if (a.out.numel() == 0) return;
  dispatch("patch_embed", {&cpu::patch_embed, ERNIE_CUDA_FN(cuda::patch_embed)}, a, stream);
}

void temporal_merge(const TemporalMergeArgs& a, const Stream& stream) {
  const Check check("temporal_merge");
  const int64_t num_tokens = count_merged_rows(a.x, a.grid_thw, a.merge_size, a.temporal_size);
  check.dtype("x", a.x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", a.x);
  check.shape(
      "out", a.out,
      {{"num_tokens", num_tokens}, {"temporal_size * hidden_size", a.temporal_size * a.x.size(1)}});
  check.dtype("out", a.out, {a.x.dtype});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "x", a.x);
  check.disjoint("out", a.out, "grid_thw", a.grid_thw);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}});
  if (a.out.numel() == 0) return;
  dispatch("temporal_merge", {&cpu::temporal_merge, ERNIE_CUDA_FN(cuda::temporal_merge)}, a,
           stream);
}

void scatter_rows(const ScatterRowsArgs& a, const Stream& stream) {
  const Check check("scatter_rows");
  check.rank("x", a.x, 2);
  check.dtype("x", a.x, {DType::kF32, DType::kBF16});
  check.inner_contiguous("x", a.x);
  check.shape("rows", a.rows, {{"rows of x", a.x.size(0)}});
  check.dtype("rows", a.rows, {DType::kI32});
  check.contiguous("rows", a.rows);
  check.rank("out", a.out, 2);
  check.shape("out", a.out, {{"num_tokens", a.out.size(0)}, {"hidden_size", a.x.size(1)}});
  if (a.out.size(0) == 0 && a.x.size(0) > 0)
    check.fail("out", "rows for those of x", "shape " + shape_string(a.out));
  check.dtype("out", a.out, {a.x.dtype});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "x", a.x);
  check.disjoint("out", a.out, "rows", a.rows);
  check.device(stream.device, {{"out", &a.out}, {"x", &a.x}, {"rows", &a.rows}});
  if (a.x.numel() == 0) return;
  dispatch("scatter_rows", {&cpu::scatter_rows, ERNIE_CUDA_FN(cuda::scatter_rows)}, a, stream);
}

}  // namespace ernie
