// wgmma: products of a warpgroup that take place between their start and the wait.
//
// What the product reads is checked at its start, by the starting threads, and again when it takes
// place, which is as late as can be: at the first wait, once all four warps have started it. Sums
// reach a thread's registers when that thread waits. Layouts: PTX ISA, "Register Fragments and
// Shared Memory Matrix Layouts".
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "machine/async_state.h"
#include "machine/multiplicands.h"

namespace simt::ptx {
namespace {

constexpr int kWarps = 4, kRows = 64, kRowWords = 8;  // 32 bytes of K
constexpr uint32_t kPoison = ~0u;

[[noreturn]] void refuse(const std::string& text, const void* site) {
  fail(Fault::kInstruction, ("wgmma: " + text).c_str(), site);
}

// --------------------------------------------------------------------------- matrices in memory

struct Matrix {
  uint32_t start, leading, stride;
  uint32_t width;  // bytes that are swizzled among each other; 16 without swizzle

  explicit Matrix(uint64_t descriptor)
      : start(field(descriptor, 0)), leading(field(descriptor, 16)), stride(field(descriptor, 32)) {
    constexpr uint32_t kWidths[] = {16, 128, 64, 32};
    width = kWidths[descriptor >> 62];
  }
  static uint32_t field(uint64_t descriptor, int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
  }
  uint32_t swizzled(uint32_t address) const {
    return address ^ ((address >> 7) & (width / 16 - 1)) << 4;
  }
  // 16 bytes along K of a row: the first or the second of an instruction's 32.
  uint32_t unit(int row, int half) const {
    const uint32_t group = start + row / 8 * stride + row % 8 * width;
    return width == 16 ? group + half * leading : swizzled(group + half * 16);
  }
  // 8 columns of one k, where columns are contiguous.
  uint32_t transposed_unit(int k, int columns) const {
    const int across = static_cast<int>(width) / 16;
    const uint32_t in_group = start + columns % across * 16 + k % 8 * width;
    if (width == 16) return in_group + columns * stride + k / 8 * leading;
    return swizzled(in_group + columns / across * leading + k / 8 * stride);
  }
};

void check_descriptor(uint64_t descriptor, bool transposed, const void* site) {
  const Matrix m(descriptor);
  if (descriptor >> 49 & 7) refuse("a base offset is not emulated", site);
  if (m.width == 16) return;
  const uint32_t pattern = 8 * m.width;
  if (m.start % pattern >= m.width || m.stride % pattern != 0 ||
      (transposed && m.leading % pattern != 0))
    refuse("a swizzle of " + std::to_string(m.width) +
               " bytes: its pattern begins at multiples of " + std::to_string(pattern) +
               " bytes of shared memory, got start " + std::to_string(m.start) + ", stride " +
               std::to_string(m.stride) + ", leading " + std::to_string(m.leading),
           site);
}

char* at(uint32_t address) { return reinterpret_cast<char*>(g_block->shared.window() + address); }

// Unit i of the 2 n units that an instruction reads of b.
uint32_t unit_of_b(const Product& p, int i) {
  const Matrix b(p.b);
  return p.transposed ? b.transposed_unit(i % 16, i / 16) : b.unit(i / 2, i % 2);
}

// Each lane its share of what the warp's product reads.
void check_operands(const Product& p, const void* site) {
  check_descriptor(p.b, p.transposed, site);
  const Thread& me = *g_block->current;
  if (!p.a_in_registers) {
    check_descriptor(p.a, false, site);
    const int row = me.warp % kWarps * 16 + me.lane / 2;
    check_async_read(at(Matrix(p.a).unit(row, me.lane % 2)), 16, site);
  }
  for (int i = me.lane; i < 2 * p.columns; i += kWarpSize)
    check_async_read(at(unit_of_b(p, i)), 16, site);
}

// The running thread reads for all.
void read_operands(WarpgroupProduct& w, const void* site) {
  const Product& p = w.product;
  const auto read = [site](uint32_t address, void* to) {
    check_async_read(at(address), 16, site);
    std::memcpy(to, at(address), 16);
  };
  for (int i = 0; i < 2 * kRows && !p.a_in_registers; ++i)
    read(Matrix(p.a).unit(i / 2, i % 2), &w.a[4 * i]);
  for (int i = 0; i < 2 * p.columns; ++i) {
    uint32_t unit[4];
    read(unit_of_b(p, i), unit);
    if (!p.transposed) {
      std::memcpy(&w.b[4 * i], unit, 16);
      continue;
    }
    const int k = i % 16, column = i / 16 * 8;
    for (int c = 0; c < 8; ++c)
      std::memcpy(reinterpret_cast<uint16_t*>(&w.b[kRowWords * (column + c)]) + k,
                  reinterpret_cast<uint16_t*>(unit) + c, 2);
  }
}

// ------------------------------------------------------------------------------------ products

// The thread's sums: register r is that of row g + 8 (r / 2 % 2) of the warp's 16, column
// 8 (r / 4) + 2 t + r % 2.
template <class A, class B>
void multiply(const WarpgroupProduct& w, const Thread& t, std::vector<uint32_t>& d) {
  using Sum = typename A::Sum;
  for (size_t r = 0; r < d.size(); ++r) {
    const size_t row = t.warp % kWarps * 16 + t.lane / 4 + r / 2 % 2 * 8;
    const size_t column = r / 4 * 8 + t.lane % 4 * 2 + r % 2;
    auto sum = std::bit_cast<Sum>(d[r]);
    for (int k = 0; k < kRowWords; ++k)
      for (int i = 0; i < A::kPerRegister; ++i)
        sum = multiply_add(A::element(w.a[kRowWords * row + k], i),
                           B::element(w.b[kRowWords * column + k], i), sum);
    d[r] = std::bit_cast<uint32_t>(sum);
  }
}

void multiply(const WarpgroupProduct& w, const Thread& t, std::vector<uint32_t>& d) {
  switch (w.product.type) {
    case ProductType::kBf16:
      return multiply<Bf16, Bf16>(w, t, d);
    case ProductType::kS8:
      return multiply<S8, S8>(w, t, d);
    case ProductType::kU8S8:
      return multiply<U8, S8>(w, t, d);
    case ProductType::kE4m3:
      return multiply<E4m3, E4m3>(w, t, d);
  }
}

bool same(const Product& p, const Product& q) {
  return p.type == q.type && p.columns == q.columns && p.transposed == q.transposed &&
         p.accumulate == q.accumulate && p.a_in_registers == q.a_in_registers && p.a == q.a &&
         p.b == q.b;
}

Warpgroup& own_warpgroup() {
  const Block& block = *g_block;
  const size_t group = static_cast<size_t>(block.current->warp / kWarps);
  if (block.threads.size() < (group + 1) * kWarps * kWarpSize)
    refuse("the block has no four warps from " + std::to_string(kWarps * group) + " on", nullptr);
  return async_state().warpgroups[group];
}
WarpProducts& own_warp() { return async_state().warps[g_block->current->warp]; }

// One lane for the warp.
void start(const Lanes& lanes) {
  const Thread& me = *g_block->current;
  Warpgroup& group = own_warpgroup();
  WarpProducts& warp = own_warp();
  if (!warp.fenced) refuse("no wgmma.fence since the warp last waited", me.site);
  const Product& p = lanes.of<const Product>(0);
  const size_t index = warp.started++ - group.dropped;
  if (index == group.products.size()) {
    group.products.push_back({p, 0, {}, {}, {}, 0});
    WarpgroupProduct& w = group.products.back();
    w.a.resize(kRowWords * kRows);
    w.b.resize(static_cast<size_t>(kRowWords) * p.columns);
    w.order.known.resize(g_block->threads.size());
  }
  WarpgroupProduct& w = group.products[index];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Product& own = lanes.of<const Product>(lane);
    if (!same(own, w.product))
      fail(Fault::kDivergence, "wgmma: the threads of a warpgroup differ about the operands",
           me.site);
    const int g = lane / 4, t = lane % 4, first = me.warp % kWarps * 16;
    for (int r = 0; r < 4 && p.a_in_registers; ++r)
      w.a[kRowWords * (first + g + 8 * (r % 2)) + t + 4 * (r / 2)] = own.registers[r];
    w.order.known[me.warp * kWarpSize + lane] = g_now + 1;
  }
  w.started |= 1u << me.warp % kWarps;
  ++g_now;  // what the lanes do from here on is no part of what waiters get to see
}

struct Wait {
  Warpgroup& group;
  size_t target;
};

bool ready(void* context) {
  const Wait& wait = *static_cast<Wait*>(context);
  if (wait.group.done >= wait.target) return true;
  if (wait.group.busy || wait.target - wait.group.dropped > wait.group.products.size())
    return false;
  for (size_t i = wait.group.done; i < wait.target; ++i)
    if (wait.group.products[i - wait.group.dropped].started != (1u << kWarps) - 1) return false;
  return true;
}

void take_place(Warpgroup& group, size_t target, const void* site) {
  group.busy = true;
  for (; group.done < target; ++group.done) {
    WarpgroupProduct& w = group.products[group.done - group.dropped];
    read_operands(w, site);
    uint32_t& known = w.order.known[g_block->current->id];
    known = std::max(known, g_now + 1);
    ++g_now;
  }
  group.busy = false;
}

void deliver(Warpgroup& group, size_t target) {
  const Thread& me = *g_block->current;
  std::deque<Delivery>& own = async_state().deliveries[me.id];
  while (!own.empty() && own.front().product < target) {
    Delivery now = std::move(own.front());
    own.pop_front();
    WarpgroupProduct& w = group.products[now.product - group.dropped];
    acquire(w.order);
    multiply(w, me, now.begin);
    const auto next = std::find_if(own.begin(), own.end(),
                                   [&](const Delivery& other) { return other.d == now.d; });
    if (next == own.end())
      std::copy(now.begin.begin(), now.begin.end(), now.d);
    else if (next->follows)
      next->begin = std::move(now.begin);
    ++w.delivered;
  }
  while (!group.products.empty() && group.products.front().delivered == kWarps * kWarpSize) {
    group.products.pop_front();
    ++group.dropped;
  }
}

}  // namespace

void wgmma(const Product& product, void* d) {
  const void* site = __builtin_return_address(0);
  own_warpgroup();
  check_operands(product, site);
  Product own = product;
  whole_warp("wgmma.mma_async", &own, &start, site);
  const Thread& me = *g_block->current;
  std::deque<Delivery>& deliveries = async_state().deliveries[me.id];
  const size_t words = static_cast<size_t>(product.columns) / 2;
  auto* registers = static_cast<uint32_t*>(d);
  const bool under_way = std::any_of(deliveries.begin(), deliveries.end(),
                                     [&](const Delivery& other) { return other.d == registers; });
  Delivery delivery{own_warp().started - 1, registers, under_way && product.accumulate,
                    std::vector<uint32_t>(words)};
  if (product.accumulate && !under_way) delivery.begin.assign(registers, registers + words);
  std::fill(registers, registers + words, kPoison);
  deliveries.push_back(std::move(delivery));
}

void wgmma_fence() {
  whole_warp(
      "wgmma.fence", nullptr, [](const Lanes&) { own_warp().fenced = true; },
      __builtin_return_address(0));
}

void wgmma_commit_group() {
  whole_warp(
      "wgmma.commit_group", nullptr,
      [](const Lanes&) { own_warp().groups.push_back(own_warp().started); },
      __builtin_return_address(0));
}

void wgmma_wait_group(int pending) {
  const void* site = __builtin_return_address(0);
  whole_warp(
      "wgmma.wait_group", &pending,
      [](const Lanes& lanes) {
        WarpProducts& warp = own_warp();
        const auto keep = static_cast<size_t>(lanes.of<int>(0));
        if (warp.groups.size() > keep) warp.target = *(warp.groups.end() - 1 - keep);
        warp.fenced = false;
      },
      site);
  Wait wait{own_warpgroup(), own_warp().target};
  while (wait.group.done < wait.target) {
    wait_until("wgmma.wait_group", &ready, &wait, site);
    if (!wait.group.busy && wait.group.done < wait.target)
      take_place(wait.group, wait.target, site);
  }
  deliver(wait.group, wait.target);
}

}  // namespace simt::ptx
