// What products with quantized weights bring near before they read it. Only *.isa.cpp files may
// include it, as simd.isa.h.
#pragma once

#include "cpu/tile.isa.h"

namespace ernie::cpu::ERNIE_ISA {
namespace {

// What a tile of PANELS prefetches while it runs, as many lines as it reads: the next panels, in
// the order in which they lie in memory. The CPU's own prefetching needs long runs of lines, and
// finds short ones of several panels in turn; its window is full of instructions that expand, and
// holds loads of the near future only. Panels too deep to wait in L2 are prefetched in turn, a bit
// ahead.
template <int PANELS>
class Ahead {
 public:
  // w: the first panel of the tile; w_end: behind the last of the weight's, null if unknown.
  Ahead(const void* w, int64_t w_stride, const void* w_end)
      : w_(static_cast<const char*>(w) + kAheadBytes), panel_step_(w_stride), line_step_(kLine) {
    const int64_t size = PANELS * w_stride;
    if (w_end == nullptr || size > kWaitingBytes) return;
    panel_step_ = kLine;
    line_step_ = PANELS * kLine;
    const char* first = static_cast<const char*>(w);
    const bool has_next = static_cast<const char*>(w_end) - first >= 2 * size;
    w_ = has_next ? first + size : first;  // lines at hand cost nothing
  }

  // One line of each panel.
  void next_line() {
    ERNIE_UNROLL for (int p = 0; p < PANELS; ++p) __builtin_prefetch(w_ + p * panel_step_);
    w_ += line_step_;
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kWaitingBytes = 256 << 10;
  static constexpr int64_t kAheadBytes = 2048;
  const char* w_;
  int64_t panel_step_, line_step_;
};

}  // namespace
}  // namespace ernie::cpu::ERNIE_ISA
