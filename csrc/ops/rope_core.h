// Which position turns a pair of a head, and how fast: what the tables of both backends share.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ernie {

enum class RopeAxes : uint8_t {
  kText,   // one position
  kMedia,  // of three, t, h and w: mrope
  kGrid,   // of two, y and x: the vision tower
};

struct RopeScheme {
  RopeAxes axes;
  int64_t pairs;       // head_dim / 2; even for kGrid
  int64_t time_pairs;  // kMedia: of the last so many pairs
};

// A pair's angle is the position of row `axis` times theta^(-step / steps).
struct RopePair {
  int64_t axis, step, steps;
};

ERNIE_HOST_DEVICE static inline RopePair rope_pair(const RopeScheme& s, int64_t pair) {
  switch (s.axes) {
    case RopeAxes::kMedia:
      return {pair < s.pairs - s.time_pairs ? 1 + pair % 2 : 0, pair, s.pairs};
    case RopeAxes::kGrid:
      return {pair / (s.pairs / 2), pair % (s.pairs / 2), s.pairs / 2};
    default:
      return {0, pair, s.pairs};
  }
}

// Where a table keeps the cosine of a pair, and the sine: side by side as `rope` reads them, or
// all cosines before all sines for the two halves of rope_2d.
ERNIE_HOST_DEVICE static inline int64_t rope_cosine(const RopeScheme& s, int64_t pair) {
  return s.axes == RopeAxes::kGrid ? pair : 2 * pair;
}
ERNIE_HOST_DEVICE static inline int64_t rope_sine(const RopeScheme& s, int64_t pair) {
  return s.axes == RopeAxes::kGrid ? s.pairs + pair : 2 * pair + 1;
}

}  // namespace ernie
