// machine/ptx_wgmma.cpp
#pragma once

#include <cstdint>

#include "cuda/ptx/descriptor.cuh"
#include "simt_qualifiers.h"

namespace simt::ptx {

enum class ProductType : uint8_t { kBf16, kS8, kU8S8, kE4m3 };

struct Product {
  ProductType type;
  int columns;
  bool transposed;  // b is N-major
  bool accumulate;
  bool a_in_registers;
  uint64_t a, b;  // descriptors
  uint32_t registers[4];
};

// `d` keeps `columns` / 2 words. They hold no sums until they are waited for, but NaN.
void wgmma(const Product& product, void* d);
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(int pending);

}  // namespace simt::ptx

namespace ernie::cuda {

__forceinline__ void wgmma_fence() { simt::ptx::wgmma_fence(); }
__forceinline__ void wgmma_commit_group() { simt::ptx::wgmma_commit_group(); }
template <int kPending>
__forceinline__ void wgmma_wait_group() {
  simt::ptx::wgmma_wait_group(kPending);
}

#define SIMT_WGMMA(name, Sum, type, more, transposed)                                             \
  template <int kN more>                                                                          \
  __forceinline__ void name(Sum(&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {           \
    static_assert(kN >= 8 && kN <= 256 && (kN & (kN - 1)) == 0, "kN: 8, 16, ... 256");            \
    simt::ptx::wgmma({simt::ptx::ProductType::type, kN, transposed, accumulate, false, a, b, {}}, \
                     d);                                                                          \
  }                                                                                               \
  template <int kN more>                                                                          \
  __forceinline__ void name(Sum(&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,                  \
                            bool accumulate) {                                                    \
    static_assert(kN >= 8 && kN <= 256 && (kN & (kN - 1)) == 0, "kN: 8, 16, ... 256");            \
    simt::ptx::wgmma({simt::ptx::ProductType::type,                                               \
                      kN,                                                                         \
                      transposed,                                                                 \
                      accumulate,                                                                 \
                      true,                                                                       \
                      0,                                                                          \
                      b,                                                                          \
                      {a[0], a[1], a[2], a[3]}},                                                  \
                     d);                                                                          \
  }
#define SIMT_AND_TRANSPOSED , bool kTransposed = false
SIMT_WGMMA(wgmma_m64k16_bf16, float, kBf16, SIMT_AND_TRANSPOSED, kTransposed)
SIMT_WGMMA(wgmma_m64k32_s8, int32_t, kS8, , false)
SIMT_WGMMA(wgmma_m64k32_u8_s8, int32_t, kU8S8, , false)
SIMT_WGMMA(wgmma_m64k32_e4m3, float, kE4m3, , false)
#undef SIMT_AND_TRANSPOSED
#undef SIMT_WGMMA

}  // namespace ernie::cuda
