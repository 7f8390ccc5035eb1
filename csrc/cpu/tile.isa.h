// Register tiles of products with packed weights: their sizes on this tier, and how they cover a
// block. Only *.isa.cpp may include it, as simd.isa.h.
#pragma once

#include "cpu/gemm.isa.h"
#include "cpu/simd.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

#define ERNIE_UNROLL _Pragma("GCC unroll 32")

constexpr int64_t kVectors = kPanelRows / F32::kWidth;  // registers across one panel

// Rows and panels of the largest tile whose accumulators stay in registers, and the widest tile for
// a single row: there the panels are as many streams from memory. Of eight, one Zen 5 core reads
// bfloat16 at 86 % of what it can, of four at 96 %.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTilePanels = 4;
constexpr int kRowPanels = 4;
constexpr int kInt8TilePanels = 2;  // integer and float sums, side by side
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kRowPanels = 4;
constexpr int kInt8TilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
constexpr int kRowPanels = 2;
constexpr int kInt8TilePanels = 1;
#endif
static_assert(kTileRows <= 6);

// Tiles that `rows` rows take.
constexpr int64_t row_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// All rows against PANELS panels, by as few tiles as can be, of about equal size: a tile of few
// rows waits for its sums.
template <int PANELS, class F>
inline void for_each_row_tile(int64_t rows, int64_t panel, const F& tile) {
  for (int64_t row = 0, size; row < rows; row += size) {
    const int64_t tiles = row_tiles(rows - row);
    size = (rows - row + tiles - 1) / tiles;
    switch (size) {
      case 6:
        tile.template operator()<(kTileRows < 6 ? 1 : 6), PANELS>(row, panel);
        break;
      case 5:
        tile.template operator()<(kTileRows < 5 ? 1 : 5), PANELS>(row, panel);
        break;
      case 4:
        tile.template operator()<(kTileRows < 4 ? 1 : 4), PANELS>(row, panel);
        break;
      case 3:
        tile.template operator()<(kTileRows < 3 ? 1 : 3), PANELS>(row, panel);
        break;
      case 2:
        tile.template operator()<2, PANELS>(row, panel);
        break;
      default:
        tile.template operator()<1, PANELS>(row, panel);
    }
  }
}

// Calls tile.operator()<ROWS, PANELS>(row, panel) for tiles that cover all rows and panels.
template <int TILE_PANELS = kTilePanels, int ROW_PANELS = kRowPanels, class F>
inline void for_each_tile(int64_t rows, int64_t panels, const F& tile) {
  int64_t panel = 0;
  if (rows == 1)
    for (; panel + ROW_PANELS <= panels; panel += ROW_PANELS)
      tile.template operator()<1, ROW_PANELS>(0, panel);
  // Five panels are three and two: one alone would wait for its sums. (Heads of 80 values have
  // five; a vision encoder's attention takes 18.5 ms, and 20 with four and one.)
  constexpr bool kThrees = TILE_PANELS == 4;
  for (; panel + TILE_PANELS <= panels && !(kThrees && panels - panel == 5); panel += TILE_PANELS)
    for_each_row_tile<TILE_PANELS>(rows, panel, tile);
  if constexpr (kThrees)
    if (panels - panel == 5) {
      for_each_row_tile<3>(rows, panel, tile);
      panel += 3;
    }
  if constexpr (TILE_PANELS > 2)
    for (; panel + 2 <= panels; panel += 2) for_each_row_tile<2>(rows, panel, tile);
  for (; panel < panels; ++panel) for_each_row_tile<1>(rows, panel, tile);
}

// Denormal operands cost some CPUs a hundred cycles each. Off for the scope, and restored.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
