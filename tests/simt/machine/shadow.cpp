#include "machine/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "machine/block.h"
#include "machine/global_memory.h"
#include "machine/report.h"

namespace simt {
namespace {

Cell* new_cells(size_t count) {
  void* p = std::calloc(std::max<size_t>(count, 1), sizeof(Cell));  // pages come when touched
  if (p == nullptr) throw std::bad_alloc();
  return static_cast<Cell*>(p);
}

}  // namespace

// ------------------------------------------------------------------------------------- regions

Region::Region(uintptr_t begin, size_t size, std::string name, bool shared)
    : begin_(begin),
      size_(size),
      name_(std::move(name)),
      shared_(shared),
      cells_(new_cells((size + 3) / 4)) {}

Region::~Region() { std::free(cells_); }

void Region::split() {
  Cell* fine = new_cells((size_ + (size_t{1} << (shift_ - 1)) - 1) >> (shift_ - 1));
  const size_t coarse = count();
  --shift_;
  for (size_t i = 0; i < count(); ++i)
    if (i / 2 < coarse &&
        cells_[i / 2].flags + cells_[i / 2].write_stamp + cells_[i / 2].read_stamp != 0)
      fine[i] = cells_[i / 2];
  std::free(cells_);
  cells_ = fine;
}

void Region::mark_written(uintptr_t a, size_t n) {
  const Span span = cells(a, n);
  for (Cell* c = span.first; c != span.last; ++c) {
    *c = Cell();
    c->flags = kWritten;
  }
}

void Region::mark_like(uintptr_t a, Region& from, uintptr_t from_address, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const bool written = from.cells(from_address + i, 1).first->flags & kWritten;
    Cell& cell = *cells(a + i, 1).first;
    cell = Cell();
    cell.flags = written ? kWritten : 0;
  }
}

void Region::forget_stamps() {
  for (size_t i = 0; i < count(); ++i) {
    const uint16_t written = cells_[i].flags & kWritten;
    cells_[i] = Cell();
    cells_[i].flags = written;
  }
}

// --------------------------------------------------------------------------------- shared memory

SharedMemory::SharedMemory() {
  void* p = mmap(nullptr, kWindow, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  window_ = reinterpret_cast<uintptr_t>(p);
  used_ = kGap;
}

SharedMemory::~SharedMemory() { munmap(reinterpret_cast<void*>(window_), kWindow); }

Region* SharedMemory::add(size_t size, size_t alignment, size_t skew, const std::string& name) {
  size_t offset = (used_ + alignment - 1) / alignment * alignment;
  if (offset / alignment % 2 == 0) offset += skew;
  if (offset + size + kGap > kWindow) return nullptr;
  used_ = offset + size + kGap;
  std::memset(reinterpret_cast<void*>(window_ + offset), 0xff, size);
  variables_.push_back(
      {nullptr, std::make_unique<Region>(window_ + offset, size, name, /*shared=*/true)});
  return variables_.back().region.get();
}

// 128-byte aligned, as the macro of the kernels says, and not by chance at any larger power of two.
void SharedMemory::set_dynamic(size_t size) {
  constexpr size_t kAlignment = 128;
  dynamic_ = add(size, kAlignment, kAlignment, "dynamic shared memory");
}

void* SharedMemory::variable(const void* key, size_t size, size_t alignment,
                             const std::string& name) {
  for (const Variable& v : variables_)
    if (v.key == key) return reinterpret_cast<void*>(v.region->begin());
  static_bytes_ += size;
  Region* region = add(size, std::max<size_t>(alignment, 4), 0, "shared variable " + name);
  if (region == nullptr) fail(Fault::kInstruction, "shared memory is full");
  variables_.back().key = key;
  return reinterpret_cast<void*>(region->begin());
}

void SharedMemory::poison() { std::memset(reinterpret_cast<void*>(window_), 0xff, used_); }

Region* SharedMemory::region_of(uintptr_t a, size_t n) {
  if (last_ != nullptr && last_->holds(a, n)) return last_;
  for (const Variable& v : variables_)
    if (v.region->holds(a, n)) return last_ = v.region.get();
  return nullptr;
}

const Region* SharedMemory::nearest(uintptr_t a) const {
  const Region* best = nullptr;
  const auto distance = [a](const Region* r) {
    return a < r->begin() ? r->begin() - a : a - r->begin() - std::min(r->size(), a - r->begin());
  };
  for (const Variable& v : variables_)
    if (best == nullptr || distance(v.region.get()) < distance(best)) best = v.region.get();
  return best;
}

// ---------------------------------------------------------------------------------- race detector

namespace {

const char* verb(Access access) {
  switch (access) {
    case Access::kRead:
      return "reads";
    case Access::kWrite:
      return "writes";
    case Access::kAtomic:
      return "atomically changes";
  }
  return "";
}

std::string what_text(Access access, size_t size) {
  return std::string(verb(access)) + " " + std::to_string(size) + " bytes";
}

[[noreturn]] void out_of_bounds(uintptr_t a, size_t n, Access access, const void* site) {
  std::string text = what_text(access, n) + " ";
  const Block& block = *g_block;
  if (block.shared.contains(a)) {
    const Region* r = block.shared.nearest(a);
    text += r == nullptr ? "of shared memory, of which the block has none" : beside_text(*r, a);
  } else if (const Stacks* s = block.stacks(); s->contains(a)) {
    text += "of another thread's local variables";
  } else {
    text += global_memory().describe(a);
  }
  fail(Fault::kOutOfBounds, text.c_str(), site);
}

struct Checker {
  Block& block;
  Thread& me;
  Region& region;
  Access access;
  size_t size;
  const void* site;

  std::string here(const Cell* c) const {
    return what_text(access, size) + " of " + region.name() + ", byte " +
           std::to_string(region.offset_of(c)) + ": ";
  }

  [[noreturn]] void race(const Cell* c, const char* before, int thread, uint32_t other_block,
                         uint32_t other_site) const {
    std::string text = "race: " + here(c) + "not ordered after ";
    if (other_block != block.number)
      text += "block " + index_text(unfold_block(block, other_block)) + " " + before + " it";
    else
      text += "thread " + index_text(block.threads[thread].index) + " " + before + " it";
    text += " " + site_text(site_at(other_site));
    fail(Fault::kRace, text.c_str(), site);
  }

  bool written(const Cell* c) const {
    return region.shared() ? c->write_stamp >= block.block_stamp : (c->flags & kWritten) != 0;
  }

  void check_last_write(const Cell* c) const {
    if (c->write_stamp < block.launch_stamp) return;
    if (access == Access::kAtomic && (c->flags & kAtomicWrite)) return;
    if (c->write_stamp < block.block_stamp) {
      if (!region.shared()) race(c, "wrote", 0, c->write_block, c->write_site);
      return;
    }
    if (!block.ordered(me, c->write_thread, c->write_stamp))
      race(c, c->flags & kAtomicWrite ? "atomically changed" : "wrote", c->write_thread,
           static_cast<uint32_t>(block.number), c->write_site);
  }

  void check_reads(const Cell* c) const {
    if (c->read_stamp < block.launch_stamp ||
        (region.shared() && c->read_stamp < block.block_stamp))
      return;
    if (c->flags & kOtherBlocksRead || c->read_stamp < block.block_stamp)
      race(c, "other than this one read", 0, ~0u, c->read_site);
    if (!block.ordered(me, c->read_thread, c->read_stamp))
      race(c, "read", c->read_thread, static_cast<uint32_t>(block.number), c->read_site);
    // Of several readers the last alone is known in full. Of the others the warps: they must have
    // met this thread since, or, where finer barriers are in use, since the last write.
    if (c->read_warps == 0 || c->read_stamp < block.barrier_time) return;
    if (c->read_warps == 1u << me.warp && c->read_stamp < block.warp_time[me.warp]) return;
    for (const Thread& t : block.threads) {
      if (!(c->read_warps >> t.warp & 1) || t.id == me.id) continue;
      if (!me.known.empty() && me.known[t.id] > c->write_stamp) continue;
      if (t.warp == me.warp && c->read_stamp < block.warp_time[me.warp]) continue;
      race(c, "or another of its warp read", t.id, static_cast<uint32_t>(block.number),
           c->read_site);
    }
  }

  void note_read(Cell* c) const {
    if (c->read_stamp < block.block_stamp) {
      c->flags &= ~kOtherBlocksRead;
      if (!region.shared() && c->read_stamp >= block.launch_stamp) c->flags |= kOtherBlocksRead;
      c->read_warps = 0;
    } else if (c->read_warps != 0) {
      c->read_warps = c->read_stamp < block.barrier_time ? 0 : c->read_warps | 1u << me.warp;
    } else if (!block.ordered(me, c->read_thread, c->read_stamp)) {
      c->read_warps = 1u << me.warp | 1u << c->read_thread / kWarpSize;
    }
    c->read_stamp = g_now;
    c->read_site = site_number(site);
    c->read_thread = static_cast<uint16_t>(me.id);
  }

  void note_write(Cell* c, bool atomic) const {
    c->write_stamp = g_now;
    c->write_site = site_number(site);
    c->write_block = static_cast<uint32_t>(block.number);
    c->write_thread = static_cast<uint16_t>(me.id);
    c->read_stamp = 0;
    c->read_warps = 0;
    c->flags = static_cast<uint16_t>(kWritten | (atomic ? kAtomicWrite : 0));
  }

  void check(Cell* c) const {
    if (c->flags & kPending && c->write_stamp >= block.block_stamp)
      fail(Fault::kPendingCopy,
           (here(c) + "a copy to it, begun by thread " +
            index_text(block.threads[c->write_thread].index) + " " +
            site_text(site_at(c->write_site)) + ", has not been waited for")
               .c_str(),
           site);
    if (access != Access::kWrite && !written(c))
      fail(Fault::kUninitialised, (here(c) + "nobody has written it").c_str(), site);
    check_last_write(c);
    if (access != Access::kRead) check_reads(c);
  }
};

// Null for memory that needs no check: the thread's own stack, parameters, constants of the
// program.
Region* find_region(Block& block, uintptr_t a, size_t n, Access access, const void* site) {
  const Fiber& fiber = block.current->fiber;
  if (a - reinterpret_cast<uintptr_t>(fiber.stack) < fiber.stack_size) return nullptr;
  Region* r =
      block.shared.contains(a) ? block.shared.region_of(a, n) : global_memory().region_of(a, n);
  const uintptr_t parameters = reinterpret_cast<uintptr_t>(block.launch.arguments);
  const bool constant = in_program(a) || a - parameters < block.launch.arguments_size;
  if (r == nullptr && (access != Access::kRead || !constant)) out_of_bounds(a, n, access, site);
  return r;
}

}  // namespace

void check_access(const void* address, size_t size, Access access, const void* site) {
  Block& block = *g_block;
  const auto a = reinterpret_cast<uintptr_t>(address);
  if (size == 0) return;
  Region* region = find_region(block, a, size, access, site);
  if (region == nullptr) return;
  if (--block.fuel == 0) {
    block.fuel = 1 + block.random.below(Block::kFuel);
    block.preempt();
  }
  if (!ERNIE_SIMT_CHECKS) return;  // ordinary stores go unseen, so a word's history says nothing
  const Checker checker{block, *block.current, *region, access, size, site};
  const Region::Span span = region->cells(a, size);
  for (Cell* c = span.first; c != span.last; ++c) {
    checker.check(c);
    if (access == Access::kRead)
      checker.note_read(c);
    else
      checker.note_write(c, access == Access::kAtomic);
  }
}

void check_alignment(const void* address, size_t alignment, const char* what, const void* site) {
  const auto a = reinterpret_cast<uintptr_t>(address);
  if (a % alignment == 0) return;
  const std::string text = std::string(what) + " needs an address aligned to " +
                           std::to_string(alignment) + " bytes, got one that is " +
                           std::to_string(a % alignment) + " beyond";
  fail(Fault::kMisaligned, text.c_str(), site);
}

PendingCopy begin_copy(void* to, const void* from, uint32_t size, uint32_t fill, const void* site) {
  check_read(from, size, site);
  check_write(to, size + fill, site);
  Region* region = g_block->shared.region_of(reinterpret_cast<uintptr_t>(to), size + fill);
  if (region == nullptr)
    fail(Fault::kInstruction, "an asynchronous copy needs shared memory to go to", site);
  const Region::Span span = region->cells(reinterpret_cast<uintptr_t>(to), size + fill);
  for (Cell* c = span.first; c != span.last; ++c) c->flags |= kPending;
  return {static_cast<char*>(to), static_cast<const char*>(from), size, fill};
}

void finish_copy(const PendingCopy& copy) {
  std::memcpy(copy.to, copy.from, copy.size);
  std::memset(copy.to + copy.size, 0, copy.fill);
  Block& block = *g_block;
  const auto a = reinterpret_cast<uintptr_t>(copy.to);
  Region* region = block.shared.region_of(a, copy.size + copy.fill);
  const Region::Span span = region->cells(a, copy.size + copy.fill);
  for (Cell* c = span.first; c != span.last; ++c) {
    c->flags &= ~kPending;
    c->write_stamp = g_now;
    c->write_thread = static_cast<uint16_t>(block.current->id);
  }
}

}  // namespace simt
