// Where patches and merged rows come from: the integers that the CPU and the CUDA kernels share.
// All 64-bit; what a grid holds has been checked (ops/vision.cpp).
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ernie {

inline constexpr int64_t kPixelChannels = 3;

// The patches of one item, in the order of all patches: `first` lie before it.
struct PatchItem {
  int64_t first, rows, columns;  // rows and columns of patches of each frame
};

// The item of grid_thw's row `thw`, which begins at *first; *first moves behind it.
inline PatchItem next_patch_item(const int64_t* thw, int64_t* first) {
  const PatchItem item = {*first, thw[1], thw[2]};
  *first += thw[0] * thw[1] * thw[2];
  return item;
}

// Where a patch lies in the pixels.
struct PatchPlace {
  int64_t first_byte;
  int64_t row_bytes;  // between its rows of pixels
};

// A frame's patches are ordered by block row, block column, row in block, column in block. A byte
// belongs to one patch alone, so an item's pixels begin where those of the patches before it end.
ERNIE_HOST_DEVICE inline PatchPlace place_of_patch(const PatchItem& item, int64_t patch,
                                                   int64_t patch_size, int64_t merge_size) {
  const int64_t frame_patches = item.rows * item.columns, block_patches = merge_size * merge_size;
  const int64_t blocks_per_row = item.columns / merge_size;
  const int64_t in_frame = (patch - item.first) % frame_patches;
  const int64_t block = in_frame / block_patches, in_block = in_frame % block_patches;
  const int64_t y = block / blocks_per_row * merge_size + in_block / merge_size;
  const int64_t x = block % blocks_per_row * merge_size + in_block % merge_size;
  const int64_t pixel_row = patch_size * kPixelChannels, row_bytes = item.columns * pixel_row;
  return {(patch - in_frame) * patch_size * pixel_row + y * patch_size * row_bytes + x * pixel_row,
          row_bytes};
}

// The merged rows of one item, in the order of all: `first` lie before it.
struct MergeItem {
  int64_t first;
  int64_t first_source;  // of its rows in x
  int64_t frames, frame_rows;
};

inline MergeItem next_merge_item(const int64_t* thw, int64_t merge_size, int64_t temporal_size,
                                 int64_t* first, int64_t* first_source) {
  const int64_t frame_rows = thw[1] / merge_size * (thw[2] / merge_size);
  const MergeItem item = {*first, *first_source, thw[0], frame_rows};
  *first += (thw[0] == 1 ? 1 : thw[0] / temporal_size) * frame_rows;
  *first_source += thw[0] * frame_rows;
  return item;
}

// The row of x that is part `part` of merged row `row`. An item of one frame is all its parts.
ERNIE_HOST_DEVICE inline int64_t source_of_merged(const MergeItem& item, int64_t row, int64_t part,
                                                  int64_t temporal_size) {
  const int64_t local = row - item.first;
  if (item.frames == 1) return item.first_source + local;
  const int64_t frame = local / item.frame_rows * temporal_size + part;
  return item.first_source + frame * item.frame_rows + local % item.frame_rows;
}

// The item that `index` belongs to: the last of `count` >= 1 that begins at it or before it.
template <class Item>
ERNIE_HOST_DEVICE inline const Item& item_of(const Item* items, int64_t count, int64_t index) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (items[middle].first <= index ? low : high) = middle;
  }
  return items[low];
}

}  // namespace ernie
