// How wgmma is told where a matrix lies in shared memory. Host and device code.
//
// Along K (K-major), a row of the matrix is 16-byte units. Rows come in groups of 8; `stride` is
// the distance of two groups. Without swizzle a group holds its rows' first units one after the
// other (128 bytes), and their second units `leading` bytes further. With a swizzle of w = 32, 64
// or 128 bytes, rows lie w apart, their units side by side, and `leading` is not used.
//
// Across K (N-major, kTransposed), a row is one k, of units of 8 columns; rows come in groups of 8.
// Without swizzle a unit's 8 rows lie side by side (128 bytes), units `stride` apart, row groups
// `leading`. With swizzle, w bytes of columns make a row of a pattern of 8 rows; patterns for
// further columns lie `leading` apart, row groups `stride`.
//
// The swizzle exchanges 16-byte units: bits 4, 5, 6 of the address (as many as w has units to
// choose from) are XORed with bits 7, 8, 9. So patterns begin at multiples of 8 w bytes. Within a
// pattern the start address may be moved along K by multiples of 32 bytes.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ernie::cuda {

enum class Swizzle : uint32_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// Distances in bytes, multiples of 16; `address` is shared_address() of the matrix.
ERNIE_HOST_DEVICE inline uint64_t wgmma_descriptor(uint32_t address, uint32_t leading,
                                                   uint32_t stride, Swizzle swizzle) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>((leading & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride & 0x3ffff) >> 4) << 32 |
         static_cast<uint64_t>(swizzle) << 62;
}

}  // namespace ernie::cuda
