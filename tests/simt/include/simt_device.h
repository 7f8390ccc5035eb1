// CUDA C++ inside kernels: indices, barriers, warp functions, atomics, intrinsics.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "machine/machine.h"
#include "simt_vectors.h"

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_extent())
#define gridDim (::simt::grid_extent())
constexpr int warpSize = 32;

// ------------------------------------------------------------------------------ shared memory
//
// csrc/cuda/common.cuh declares shared memory through these. A static variable's address tells one
// declaration, and one instantiation of a template, from another.

#define SIMT_SHARED(type, name, extent)                                                \
  static char name##_key;                                                              \
  auto& name = *static_cast<std::type_identity_t<type extent>*>(::simt::static_shared( \
      &name##_key, sizeof(std::type_identity_t<type extent>), alignof(type), #name))
#define SIMT_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::simt::dynamic_shared())

// ------------------------------------------------------------------------------------- barriers

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::simt::block_barrier(simt::Vote::kNone, 0, file, line);
}
inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) {
  return ::simt::block_barrier(simt::Vote::kOr, predicate, file, line);
}
inline int __syncthreads_and(int predicate, const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
  return ::simt::block_barrier(simt::Vote::kAnd, predicate, file, line);
}
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
  return ::simt::block_barrier(simt::Vote::kCount, predicate, file, line);
}
void __syncwarp(unsigned mask = 0xffffffffu);
// They order memory, but no thread after another: the machine runs one thread at a time, and its
// race detector wants barriers.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { ::simt::yield(); }

// ------------------------------------------------------------------------------- warp functions

namespace simt {

enum class Shuffle : uint8_t { kIndex, kUp, kDown, kXor };
uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t bits, int lane, int width);

enum class Reduce : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor };
uint32_t reduce(Reduce op, bool is_signed, uint32_t mask, uint32_t value);

uint32_t ballot(uint32_t mask, bool predicate);
uint32_t match_any(uint32_t mask, uint64_t bits);
uint32_t match_all(uint32_t mask, uint64_t bits, int* all);

template <class T>
inline uint64_t to_bits(T v) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles values of 4 and 8 bytes");
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<uint32_t>(v);
  else
    return std::bit_cast<uint64_t>(v);
}
template <class T>
inline T from_bits(uint64_t bits) {
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<T>(static_cast<uint32_t>(bits));
  else
    return std::bit_cast<T>(bits);
}

}  // namespace simt

template <class T>
inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::kIndex, mask, simt::to_bits(v), lane, width));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::kUp, mask, simt::to_bits(v), static_cast<int>(delta), width));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::kDown, mask, simt::to_bits(v), static_cast<int>(delta), width));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::kXor, mask, simt::to_bits(v), lane_mask, width));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate == 0) == 0;
}
// Any set of lanes that contains the caller may be converged; a kernel may rely on no more.
inline unsigned __activemask() { return 1u << simt::lane_index(); }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T v) {
  return simt::match_any(mask, simt::to_bits(v));
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T v, int* all) {
  return simt::match_all(mask, simt::to_bits(v), all);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kAdd, false, mask, v);
}
inline int __reduce_add_sync(unsigned mask, int v) {
  return static_cast<int>(simt::reduce(simt::Reduce::kAdd, true, mask, static_cast<unsigned>(v)));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kMin, false, mask, v);
}
inline int __reduce_min_sync(unsigned mask, int v) {
  return static_cast<int>(simt::reduce(simt::Reduce::kMin, true, mask, static_cast<unsigned>(v)));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kMax, false, mask, v);
}
inline int __reduce_max_sync(unsigned mask, int v) {
  return static_cast<int>(simt::reduce(simt::Reduce::kMax, true, mask, static_cast<unsigned>(v)));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kAnd, false, mask, v);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kOr, false, mask, v);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v) {
  return simt::reduce(simt::Reduce::kXor, false, mask, v);
}

// -------------------------------------------------------------------------------------- atomics
//
// Defined for int, unsigned, unsigned long long and, where CUDA has them, float and double.

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v);
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v);
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v);
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v);
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v);
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v);
template <class T>
T atomicXor(T* p, std::type_identity_t<T> v);
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v);

// ------------------------------------------------------------------------------------ intrinsics

template <class T>
inline T __ldg(const T* p) {
  return *p;
}

inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1.f / std::sqrt(v); }

#define SIMT_MIN_MAX(type)                                  \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
