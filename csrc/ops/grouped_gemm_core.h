// Where the rows of a grouped product lie: integers alone, shared by host and device.
//
// The rows of an expert are cut into tiles of `tile_rows`; the tiles of all experts, in order, are
// numbered from 0. How many there are is known on the device alone; the host knows the most there
// can be.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"

namespace ernie {

struct ExpertRows {
  int begin, count;
};

// Rows of an expert, from its two offsets: within [0, num_rows) whatever these hold.
ERNIE_HOST_DEVICE inline ExpertRows expert_rows(int64_t begin, int64_t end, int num_rows) {
  const int first = static_cast<int>(begin < 0 ? 0 : begin < num_rows ? begin : num_rows);
  const int last = static_cast<int>(end < first ? first : end < num_rows ? end : num_rows);
  return {first, last - first};
}

ERNIE_HOST_DEVICE inline int row_tiles(int count, int tile_rows) {
  return count / tile_rows + (count % tile_rows != 0);
}

// Part `index` of an expert's row tiles.
ERNIE_HOST_DEVICE inline ExpertRows row_tile(ExpertRows rows, int index, int tile_rows) {
  const int skipped = index * tile_rows, left = rows.count - skipped;
  return {rows.begin + skipped, left < tile_rows ? left : tile_rows};
}

// The most tiles that num_rows rows can fall into: each of the experts that have rows, no more than
// there are rows, wastes less than one.
inline int64_t max_row_tiles(int64_t num_rows, int64_t num_experts, int64_t tile_rows) {
  return (num_rows + std::min(num_rows, num_experts) * (tile_rows - 1)) / tile_rows;
}

// A block multiplies weight rows sixteen at a time: sixteen outputs, or, gated, the gate rows of
// eight outputs and then their up rows, so that one lane of a product holds both sums of an output.
struct WeightRow {
  int64_t output;  // of the expert's; may be beyond the last
  int64_t row;     // of the expert's weight
};
ERNIE_HOST_DEVICE inline WeightRow weight_row(int64_t first_output, int local, bool gated,
                                              int64_t outputs) {
  if (!gated) return {first_output + local, first_output + local};
  const int64_t output = first_output + local / 16 * 8 + local % 8;
  return {output, local % 16 < 8 ? output : outputs + output};
}

// In [0, count) whatever the data holds; count > 0.
ERNIE_HOST_DEVICE inline int64_t source_row(int32_t row, int64_t count) {
  return row < 0 ? 0 : row < count ? row : count - 1;
}

}  // namespace ernie
