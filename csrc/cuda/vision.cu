#include <algorithm>

#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/gemm.h"
#include "ops/vision.h"
#include "ops/vision_index.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 256;

// ---------------------------------------------------------------------------------------- items

// grid_thw is on the host: a launch takes its items along, as many as its parameters have room for.
constexpr int kGroup = 64;

template <class Item>
struct Group {
  Item items[kGroup];
  int count;

  __device__ const Item& of(int64_t index) const { return item_of(items, count, index); }
};

// Calls f(group, begin, end) for kGroup items at a time, which have the rows [begin, end) of out.
// next(thw, &first) makes an item of a row of grid_thw.
template <class Item, class Next, class F>
void for_each_group(const TensorView& grid_thw, const Next& next, const F& f) {
  int64_t first = 0;
  for (int64_t i = 0; i < grid_thw.size(0);) {
    Group<Item> group = {};
    const int64_t begin = first;
    for (; i < grid_thw.size(0) && group.count < kGroup; ++i)
      group.items[group.count++] = next(grid_thw.ptr<int64_t>() + 3 * i, &first);
    f(group, begin, first);
  }
}

// -------------------------------------------------------------------------------------- patches

constexpr int kLevels = 256;
constexpr int kPatches = 8;  // of a block's step
// A wave of an H200. Each block reads levels once, so more of them would cost as much again.
constexpr int kMostBlocks = 1024;

// Blocks walk the patches, kPatches a step, threads the elements of a row, each at one place of all
// of the step's patches. Memory-bound by the bytes, one read and as many written as out's dtype
// has; near the issue limit of the load and store units, as an element takes four of their
// instructions.
template <class T>
__global__ void __launch_bounds__(kThreads)
    image_patches_kernel(T* out, const uint8_t* pixels, const float* levels,
                         const __grid_constant__ Group<PatchItem> group, int64_t out_stride,
                         int64_t first, int64_t count, int patch_size, int merge_size) {
  ERNIE_SHARED(T, table, [kPixelChannels * kLevels]);
  ERNIE_SHARED(PatchPlace, places, [kPatches]);
  for (int i = threadIdx.x; i < kPixelChannels * kLevels; i += kThreads)
    table[i] = from_float<T>(levels[i]);
  const int area = patch_size * patch_size;
  const int64_t step = int64_t{gridDim.x} * kPatches;
  for (int64_t begin = int64_t{blockIdx.x} * kPatches; begin < count; begin += step) {
    const int rows = static_cast<int>(count - begin < kPatches ? count - begin : kPatches);
    __syncthreads();  // the places of the step before have been read
    if (threadIdx.x < rows) {
      const int64_t patch = first + begin + threadIdx.x;
      places[threadIdx.x] = place_of_patch(group.of(patch), patch, patch_size, merge_size);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kPixelChannels * area; i += kThreads) {
      const int c = i / area, dy = i % area / patch_size, dx = i % patch_size;
      const T* level = table + c * kLevels;
      const uint8_t* colour = pixels + dx * kPixelChannels + c;
      T* o = out + begin * out_stride + i;
#pragma unroll 4
      for (int r = 0; r < rows; ++r)
        o[r * out_stride] = level[colour[places[r].first_byte + dy * places[r].row_bytes]];
    }
  }
}

// ----------------------------------------------------------------------------------- whole rows

// In units. Strides below zero make either offset negative, so that it cannot tell the rows that
// are not copied.
struct RowCopy {
  int64_t to, from;
  bool has_place;
};

struct MergedRows {
  Group<MergeItem> group;
  int64_t first, parts, row, out_stride, x_stride;

  __device__ RowCopy operator()(int64_t i) const {
    const int64_t merged = i / parts, part = i - merged * parts, index = first + merged;
    return {index * out_stride + part * row,
            source_of_merged(group.of(index), index, part, parts) * x_stride, true};
  }
};

struct ScatteredRows {
  const int32_t* rows;
  int64_t num_tokens, out_stride, x_stride;

  __device__ RowCopy operator()(int64_t i) const {
    const int64_t row = rows[i];
    return {row * out_stride, i * x_stride, row >= 0 && row < num_tokens};
  }
};

// Blocks x walk the rows, y their units; a thread owns one unit. Memory-bound: reads and writes
// every row once.
template <class Unit, class Copies>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(Unit* out, const Unit* x, int64_t count, int64_t row,
                     const __grid_constant__ Copies copies) {
  const int64_t step = int64_t{gridDim.y} * kThreads;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const RowCopy copy = copies(i);
    if (!copy.has_place) continue;
    for (int64_t u = int64_t{blockIdx.y} * kThreads + threadIdx.x; u < row; u += step)
      out[copy.to + u] = x[copy.from + u];
  }
}

// ------------------------------------------------------------------------------------ launchers

template <class T, class Args>
void launch_patches(const Args& a, T* out, int64_t out_stride, int64_t first, int64_t count,
                    const Stream& stream) {
  for_each_group<PatchItem>(
      a.grid_thw, next_patch_item, [&](const auto& group, int64_t begin, int64_t end) {
        begin = std::max(begin, first);
        end = std::min(end, first + count);
        if (begin >= end) return;
        const int64_t blocks = ceil_div(end - begin, kPatches);
        launch(image_patches_kernel<T>,
               {.grid = static_cast<unsigned>(std::min<int64_t>(blocks, kMostBlocks)),
                .block = kThreads,
                .stream = stream_of(stream)},
               out + (begin - first) * out_stride, a.pixels.template ptr<uint8_t>(),
               a.levels.template ptr<float>(), group, out_stride, begin, end - begin, a.patch_size,
               a.merge_size);
      });
}

// Patches [first, first + rows of out).
template <class Args>
void patches_to(const TensorView& out, const Args& a, int64_t first, const Stream& stream) {
  if (out.dtype == DType::kBF16)
    launch_patches(a, out.ptr<bf16>(), out.step(0), first, out.size(0), stream);
  else
    launch_patches(a, out.ptr<float>(), out.step(0), first, out.size(0), stream);
}

// Calls f<Unit>(elements of a Unit): 16 bytes where all rows allow, else an element.
template <class F>
void with_unit(const TensorView& out, const TensorView& x, const F& f) {
  const int64_t width = size_of(x.dtype);
  if (is_wide(out) && is_wide(x))
    f.template operator()<uint4>(static_cast<int64_t>(sizeof(uint4)) / width);
  else if (width == 2)
    f.template operator()<uint16_t>(1);
  else
    f.template operator()<uint32_t>(1);
}

template <class Unit, class Copies>
void launch_copy(const TensorView& out, const TensorView& x, int64_t count, int64_t row,
                 const Copies& copies, const Stream& stream) {
  launch(
      copy_rows_kernel<Unit, Copies>,
      {.grid = grid_of_items(count, row, kThreads), .block = kThreads, .stream = stream_of(stream)},
      out.ptr<Unit>(), x.ptr<Unit>(), count, row, copies);
}

}  // namespace

void image_patches(const ImagePatchesArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  patches_to(a.out, a, 0, stream);
}

void patch_embed(const PatchEmbedArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_patches = a.out.size(0), room = a.patches->size(0);
  for (int64_t first = 0; first < num_patches; first += room) {
    const int64_t count = std::min(room, num_patches - first);
    const TensorView patches = rows_of(*a.patches, 0, count);
    patches_to(patches, a, first, stream);
    cuda::linear({.out = rows_of(a.out, first, count),
                  .x = patches,
                  .weight = a.weight,
                  .bias = std::nullopt},
                 stream);
  }
}

void temporal_merge(const TemporalMergeArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  int64_t first_source = 0;
  const auto next = [&](const int64_t* thw, int64_t* first) {
    return next_merge_item(thw, a.merge_size, a.temporal_size, first, &first_source);
  };
  for_each_group<MergeItem>(a.grid_thw, next, [&](const auto& group, int64_t begin, int64_t end) {
    with_unit(a.out, a.x, [&]<class Unit>(int64_t elements) {
      const int64_t row = a.x.size(1) / elements;
      const MergedRows copies = {.group = group,
                                 .first = begin,
                                 .parts = a.temporal_size,
                                 .row = row,
                                 .out_stride = a.out.step(0) / elements,
                                 .x_stride = a.x.step(0) / elements};
      launch_copy<Unit>(a.out, a.x, (end - begin) * a.temporal_size, row, copies, stream);
    });
  });
}

void scatter_rows(const ScatterRowsArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  with_unit(a.out, a.x, [&]<class Unit>(int64_t elements) {
    const ScatteredRows copies = {.rows = a.rows.ptr<int32_t>(),
                                  .num_tokens = a.out.size(0),
                                  .out_stride = a.out.step(0) / elements,
                                  .x_stride = a.x.step(0) / elements};
    launch_copy<Unit>(a.out, a.x, a.x.size(0), a.x.size(1) / elements, copies, stream);
  });
}

}  // namespace ernie::cuda
