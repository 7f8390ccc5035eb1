// Shuffles, votes, matches and reductions, and the atomic functions of CUDA C++.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "machine/machine.h"
#include "simt_device.h"

namespace simt {
namespace {

constexpr uint64_t kUndefined = ~uint64_t{0};  // NaN, or -1

struct ShuffleCall {
  uint64_t bits, result;
  int lane, width;
  Shuffle mode;
};

// CUDA C++ Programming Guide, "Warp shuffle functions". What comes from a lane that takes no part
// is undefined.
void do_shuffle(const Lanes& lanes) {
  for (int l = 0; l < 32; ++l) {
    if (!lanes.has(l)) continue;
    auto& c = lanes.of<ShuffleCall>(l);
    const int first = l / c.width * c.width;
    int from = l;
    switch (c.mode) {
      case Shuffle::kIndex:
        from = first + (c.lane & (c.width - 1));
        break;
      case Shuffle::kUp:
        from = l - c.lane < first ? l : l - c.lane;
        break;
      case Shuffle::kDown:
        from = l + c.lane >= first + c.width ? l : l + c.lane;
        break;
      case Shuffle::kXor:  // later segments may read earlier ones
        from = (l ^ c.lane) >= first + c.width ? l : l ^ c.lane;
        break;
    }
    c.result = from < 32 && lanes.has(from) ? lanes.of<ShuffleCall>(from).bits : kUndefined;
  }
}

struct MatchCall {
  uint64_t bits;
  uint32_t result;
  bool all;
};

struct ReduceCall {
  uint32_t value;
  Reduce op;
  bool is_signed;
};

uint32_t combine(const ReduceCall& call, uint32_t a, uint32_t b) {
  const auto sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
  switch (call.op) {
    case Reduce::kAdd:
      return a + b;
    case Reduce::kMin:
      return call.is_signed ? static_cast<uint32_t>(std::min(sa, sb)) : std::min(a, b);
    case Reduce::kMax:
      return call.is_signed ? static_cast<uint32_t>(std::max(sa, sb)) : std::max(a, b);
    case Reduce::kAnd:
      return a & b;
    case Reduce::kOr:
      return a | b;
    case Reduce::kXor:
      return a ^ b;
  }
  return 0;
}

const char* const kShuffleNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                     "__shfl_xor_sync"};

}  // namespace

uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t bits, int lane, int width) {
  const void* site = __builtin_return_address(0);
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    fail(Fault::kInstruction, "a shuffle's width must be a power of two up to 32", site);
  ShuffleCall call = {bits, kUndefined, lane, width, mode};
  warp_collective(kShuffleNames[static_cast<int>(mode)], mask, &call, &do_shuffle, Exited::kIgnored,
                  site);
  return call.result;
}

uint32_t ballot(uint32_t mask, bool predicate) {
  uint32_t votes = predicate;
  warp_collective(
      "vote.sync", mask, &votes,
      [](const Lanes& lanes) {
        uint32_t all = 0;
        for (int l = 0; l < 32; ++l)
          if (lanes.has(l) && lanes.of<uint32_t>(l)) all |= 1u << l;
        for (int l = 0; l < 32; ++l)
          if (lanes.has(l)) lanes.of<uint32_t>(l) = all;
      },
      Exited::kIgnored, __builtin_return_address(0));
  return votes;
}

uint32_t match_any(uint32_t mask, uint64_t bits) {
  MatchCall call = {bits, 0, false};
  warp_collective(
      "match.any.sync", mask, &call,
      [](const Lanes& lanes) {
        for (int l = 0; l < 32; ++l)
          for (int m = 0; lanes.has(l) && m < 32; ++m)
            if (lanes.has(m) && lanes.of<MatchCall>(m).bits == lanes.of<MatchCall>(l).bits)
              lanes.of<MatchCall>(l).result |= 1u << m;
      },
      Exited::kIgnored, __builtin_return_address(0));
  return call.result;
}

uint32_t match_all(uint32_t mask, uint64_t bits, int* all) {
  MatchCall call = {bits, 0, true};
  warp_collective(
      "match.all.sync", mask, &call,
      [](const Lanes& lanes) {
        const uint64_t first = lanes.of<MatchCall>(std::countr_zero(lanes.present)).bits;
        bool same = true;
        for (int l = 0; l < 32; ++l) same &= !lanes.has(l) || lanes.of<MatchCall>(l).bits == first;
        for (int l = 0; l < 32; ++l)
          if (lanes.has(l)) {
            lanes.of<MatchCall>(l).all = same;
            lanes.of<MatchCall>(l).result = same ? lanes.present : 0;
          }
      },
      Exited::kIgnored, __builtin_return_address(0));
  *all = call.all;
  return call.result;
}

uint32_t reduce(Reduce op, bool is_signed, uint32_t mask, uint32_t value) {
  ReduceCall call = {value, op, is_signed};
  warp_collective(
      "redux.sync", mask, &call,
      [](const Lanes& lanes) {
        const int first = std::countr_zero(lanes.present);
        uint32_t sum = lanes.of<ReduceCall>(first).value;
        for (int l = first + 1; l < 32; ++l)
          if (lanes.has(l))
            sum = combine(lanes.of<ReduceCall>(first), sum, lanes.of<ReduceCall>(l).value);
        for (int l = first; l < 32; ++l)
          if (lanes.has(l)) lanes.of<ReduceCall>(l).value = sum;
      },
      Exited::kIgnored, __builtin_return_address(0));
  return call.value;
}

}  // namespace simt

void __syncwarp(unsigned mask) { simt::warp_barrier(mask, __builtin_return_address(0)); }

// -------------------------------------------------------------------------------------- atomics

namespace {

template <class T, class F>
T change(T* p, const void* site, const F& f) {
  simt::check_alignment(p, sizeof(T), "an atomic operation", site);
  simt::check_access(p, sizeof(T), simt::Access::kAtomic, site);
  const T before = *p;
  *p = f(before);
  return before;
}

}  // namespace

#define SITE __builtin_return_address(0)
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return static_cast<T>(x + v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T) { return v; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return std::min(x, v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return std::max(x, v); });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return x & v; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return x | v; });
}
template <class T>
T atomicXor(T* p, std::type_identity_t<T> v) {
  return change(p, SITE, [v](T x) { return x ^ v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v) {
  return change(p, SITE, [=](T x) { return x == compare ? v : x; });
}

#define INTEGER_ATOMICS(T)                               \
  template T atomicAdd<T>(T*, std::type_identity_t<T>);  \
  template T atomicExch<T>(T*, std::type_identity_t<T>); \
  template T atomicMin<T>(T*, std::type_identity_t<T>);  \
  template T atomicMax<T>(T*, std::type_identity_t<T>);  \
  template T atomicAnd<T>(T*, std::type_identity_t<T>);  \
  template T atomicOr<T>(T*, std::type_identity_t<T>);   \
  template T atomicXor<T>(T*, std::type_identity_t<T>);  \
  template T atomicCAS<T>(T*, std::type_identity_t<T>, std::type_identity_t<T>);
INTEGER_ATOMICS(int)
INTEGER_ATOMICS(unsigned)
INTEGER_ATOMICS(unsigned long long)
template float atomicAdd<float>(float*, std::type_identity_t<float>);
template double atomicAdd<double>(double*, std::type_identity_t<double>);
template float atomicExch<float>(float*, std::type_identity_t<float>);
