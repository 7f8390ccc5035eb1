// wgmma: products of 64 rows that a warpgroup, four warps from a multiple of four on, starts
// together and later waits for.
//
// d (+)= a b, 64 x kN, where b and, unless it comes in registers, a lie in shared memory as
// descriptor.cuh says. Warp w of the group holds rows 16 w to 16 w + 15, in fragments as mma.sync's
// (matrix.cuh): a of four registers; register r of d is row g + 8 (r / 2 % 2), column
// 8 (r / 4) + 2 t + r % 2.
//
// Order: wgmma_fence, products, wgmma_commit_group, wgmma_wait_group. Until waited for, no thread
// touches d or registers of a, and nobody writes the matrices. Writers of the matrices that are
// threads, not bulk copies, run fence_proxy_async before the barrier.
#pragma once

#include <cstdint>

#include "cuda/ptx/architecture.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/descriptor.cuh"

#if defined(ERNIE_PTX_SM90A)

namespace ernie::cuda {

// Before the first product, and wherever registers of d or a have changed since the last one.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Registers of d in an instruction's text, and as operands.
#define ERNIE_D4 "%0, %1, %2, %3"
#define ERNIE_D8 ERNIE_D4 ", %4, %5, %6, %7"
#define ERNIE_D16 ERNIE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ERNIE_D32                                                               \
  ERNIE_D16                                                                     \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30" \
  ", %31"
#define ERNIE_D64                                                               \
  ERNIE_D32                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46" \
  ", %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61" \
  ", %62, %63"
#define ERNIE_D128                                                                 \
  ERNIE_D64                                                                        \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78"    \
  ", %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93"    \
  ", %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106"       \
  ", %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"
#define ERNIE_OUT4(c, i) c(d[i]), c(d[(i) + 1]), c(d[(i) + 2]), c(d[(i) + 3])
#define ERNIE_OUT8(c, i) ERNIE_OUT4(c, i), ERNIE_OUT4(c, (i) + 4)
#define ERNIE_OUT16(c, i) ERNIE_OUT8(c, i), ERNIE_OUT8(c, (i) + 8)
#define ERNIE_OUT32(c, i) ERNIE_OUT16(c, i), ERNIE_OUT16(c, (i) + 16)
#define ERNIE_OUT64(c, i) ERNIE_OUT32(c, i), ERNIE_OUT32(c, (i) + 32)
#define ERNIE_OUT128(c, i) ERNIE_OUT64(c, i), ERNIE_OUT64(c, (i) + 64)

// One width. `c`: "+f" or "+r"; `count` registers of d; i0 to i6: the numbers after them; `more`:
// what follows scale-d in the text. The operand after the scale is the transposition of b, which
// only 16-bit types have.
#define ERNIE_WGMMA_SHARED(n, shape, c, count, i0, i1, i2, i3, more)                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                               \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n shape " {" ERNIE_D##count \
               "}, %" #i0 ", %" #i1 ", p" more(i3) ";\n}"                             \
               : ERNIE_OUT##count(c, 0)                                               \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposed))
#define ERNIE_WGMMA_REGISTERS(n, shape, c, count, i0, i1, i2, i3, i4, i5, i6, more)       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                   \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n shape " {" ERNIE_D##count     \
               "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p" more(i6) ";\n}" \
               : ERNIE_OUT##count(c, 0)                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                      \
                 "r"(static_cast<int>(accumulate)), "n"(kTransposed))
#define ERNIE_NOTHING_MORE(i)
#define ERNIE_SIGNS_SHARED(i) ", 1, 1, 0, %" #i
#define ERNIE_SIGNS_REGISTERS(i) ", 1, 1, %" #i
#define ERNIE_SIGNS_BYTES(i) ", 1, 1"

// All widths that are powers of two.
#define ERNIE_WGMMA_ALL_SHARED(shape, c, more)                                       \
  static_assert(kN >= 8 && kN <= 256 && (kN & (kN - 1)) == 0, "kN: 8, 16, ... 256"); \
  if constexpr (kN == 8)                                                             \
    ERNIE_WGMMA_SHARED(8, shape, c, 4, 4, 5, 6, 7, more);                            \
  else if constexpr (kN == 16)                                                       \
    ERNIE_WGMMA_SHARED(16, shape, c, 8, 8, 9, 10, 11, more);                         \
  else if constexpr (kN == 32)                                                       \
    ERNIE_WGMMA_SHARED(32, shape, c, 16, 16, 17, 18, 19, more);                      \
  else if constexpr (kN == 64)                                                       \
    ERNIE_WGMMA_SHARED(64, shape, c, 32, 32, 33, 34, 35, more);                      \
  else if constexpr (kN == 128)                                                      \
    ERNIE_WGMMA_SHARED(128, shape, c, 64, 64, 65, 66, 67, more);                     \
  else                                                                               \
    ERNIE_WGMMA_SHARED(256, shape, c, 128, 128, 129, 130, 131, more)
#define ERNIE_WGMMA_ALL_REGISTERS(shape, c, more)                                    \
  static_assert(kN >= 8 && kN <= 256 && (kN & (kN - 1)) == 0, "kN: 8, 16, ... 256"); \
  if constexpr (kN == 8)                                                             \
    ERNIE_WGMMA_REGISTERS(8, shape, c, 4, 4, 5, 6, 7, 8, 9, 10, more);               \
  else if constexpr (kN == 16)                                                       \
    ERNIE_WGMMA_REGISTERS(16, shape, c, 8, 8, 9, 10, 11, 12, 13, 14, more);          \
  else if constexpr (kN == 32)                                                       \
    ERNIE_WGMMA_REGISTERS(32, shape, c, 16, 16, 17, 18, 19, 20, 21, 22, more);       \
  else if constexpr (kN == 64)                                                       \
    ERNIE_WGMMA_REGISTERS(64, shape, c, 32, 32, 33, 34, 35, 36, 37, 38, more);       \
  else if constexpr (kN == 128)                                                      \
    ERNIE_WGMMA_REGISTERS(128, shape, c, 64, 64, 65, 66, 67, 68, 69, 70, more);      \
  else                                                                               \
    ERNIE_WGMMA_REGISTERS(256, shape, c, 128, 128, 129, 130, 131, 132, 133, 134, more)

// a: K-major, of 32 bytes of K an instruction. b: K-major too, or N-major where kTransposed.
template <int kN, bool kTransposed = false>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                                  bool accumulate) {
  ERNIE_WGMMA_ALL_SHARED("k16.f32.bf16.bf16", "+f", ERNIE_SIGNS_SHARED);
}
template <int kN, bool kTransposed = false>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], const uint32_t (&a)[4],
                                                  uint64_t b, bool accumulate) {
  ERNIE_WGMMA_ALL_REGISTERS("k16.f32.bf16.bf16", "+f", ERNIE_SIGNS_REGISTERS);
}

// Bytes have no N-major b. Integers wrap on overflow.
#define ERNIE_WGMMA_BYTES(name, element, shape, c, more)                                        \
  template <int kN>                                                                             \
  __device__ __forceinline__ void name(element(&d)[kN / 2], uint64_t a, uint64_t b,             \
                                       bool accumulate) {                                       \
    constexpr int kTransposed = 0;                                                              \
    ERNIE_WGMMA_ALL_SHARED(shape, c, more);                                                     \
  }                                                                                             \
  template <int kN>                                                                             \
  __device__ __forceinline__ void name(element(&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, \
                                       bool accumulate) {                                       \
    constexpr int kTransposed = 0;                                                              \
    ERNIE_WGMMA_ALL_REGISTERS(shape, c, more);                                                  \
  }
ERNIE_WGMMA_BYTES(wgmma_m64k32_s8, int32_t, "k32.s32.s8.s8", "+r", ERNIE_NOTHING_MORE)
ERNIE_WGMMA_BYTES(wgmma_m64k32_u8_s8, int32_t, "k32.s32.u8.s8", "+r", ERNIE_NOTHING_MORE)
// Sums keep about 14 bits of mantissa: add them up elsewhere every 128 of K.
ERNIE_WGMMA_BYTES(wgmma_m64k32_e4m3, float, "k32.f32.e4m3.e4m3", "+f", ERNIE_SIGNS_BYTES)

#undef ERNIE_D4
#undef ERNIE_D8
#undef ERNIE_D16
#undef ERNIE_D32
#undef ERNIE_D64
#undef ERNIE_D128
#undef ERNIE_OUT4
#undef ERNIE_OUT8
#undef ERNIE_OUT16
#undef ERNIE_OUT32
#undef ERNIE_OUT64
#undef ERNIE_OUT128
#undef ERNIE_WGMMA_SHARED
#undef ERNIE_WGMMA_REGISTERS
#undef ERNIE_NOTHING_MORE
#undef ERNIE_SIGNS_SHARED
#undef ERNIE_SIGNS_REGISTERS
#undef ERNIE_SIGNS_BYTES
#undef ERNIE_WGMMA_ALL_SHARED
#undef ERNIE_WGMMA_ALL_REGISTERS
#undef ERNIE_WGMMA_BYTES

}  // namespace ernie::cuda

#endif
