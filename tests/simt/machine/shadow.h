// What the machine knows of each piece of memory: whose it is, who wrote it last, who has read it
// since, whether a copy to it is under way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "machine/machine.h"

namespace simt {

// One granule. Stamps are ticks of a clock that runs on through all launches: a stamp below the
// launch's first is of an earlier one, below the block's first of another block.
struct Cell {
  uint32_t write_stamp, write_site, write_block;
  uint32_t read_stamp, read_site;
  uint32_t read_warps;                 // of the readers since the last write; 0: at most one thread
  uint16_t write_thread, read_thread;  // ids in the block
  uint16_t flags, unused;
};
static_assert(sizeof(Cell) == 32);

enum CellFlag : uint16_t {
  kWritten = 1,          // global memory: by a kernel or the host, ever
  kAtomicWrite = 2,      // the last write was atomic
  kPending = 4,          // a copy to it has not been waited for
  kOtherBlocksRead = 8,  // earlier blocks of the launch have read it
  kAsyncWrite = 16,      // the last write was a bulk copy's
};

// A variable in shared memory, or an allocation in global memory. Granules are words until an
// access needs smaller ones.
class Region {
 public:
  Region(uintptr_t begin, size_t size, std::string name, bool shared);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uintptr_t begin() const { return begin_; }
  size_t size() const { return size_; }
  bool shared() const { return shared_; }
  const std::string& name() const { return name_; }
  bool holds(uintptr_t a, size_t n) const {
    return a - begin_ < size_ && n <= size_ - (a - begin_);
  }

  // The cells of n bytes at a, after making granules small enough.
  struct Span {
    Cell *first, *last;  // last: one beyond
  };
  Span cells(uintptr_t a, size_t n) {
    const uintptr_t offset = a - begin_;
    while ((offset | n) & ((size_t{1} << shift_) - 1)) split();
    return {cells_ + (offset >> shift_), cells_ + ((offset + n) >> shift_)};
  }
  size_t offset_of(const Cell* cell) const { return static_cast<size_t>(cell - cells_) << shift_; }

  // The host has written these bytes, or a copy from `from` did.
  void mark_written(uintptr_t a, size_t n);
  void mark_like(uintptr_t a, Region& from, uintptr_t from_address, size_t n);
  void forget_stamps();

 private:
  void split();
  size_t count() const { return (size_ + (size_t{1} << shift_) - 1) >> shift_; }

  uintptr_t begin_;
  size_t size_;
  std::string name_;
  bool shared_;
  int shift_ = 2;
  Cell* cells_;
};

// The shared memory of one block after the other: variables lie apart, so that a step beyond one is
// seen, and are full of NaN when a block begins.
class SharedMemory {
 public:
  static constexpr size_t kWindow = size_t{512} << 10;
  static constexpr size_t kGap = 128;
  SharedMemory();
  ~SharedMemory();

  void* variable(const void* key, size_t size, size_t alignment, const std::string& name);
  void set_dynamic(size_t size);
  void* dynamic() const { return reinterpret_cast<void*>(dynamic_->begin()); }
  void poison();
  bool contains(uintptr_t a) const { return a - window_ < kWindow; }
  uintptr_t window() const { return window_; }
  Region* region_of(uintptr_t a, size_t n);  // null where no variable holds it
  const Region* nearest(uintptr_t a) const;
  size_t static_bytes() const { return static_bytes_; }

 private:
  Region* add(size_t size, size_t alignment, size_t skew, const std::string& name);

  struct Variable {
    const void* key;
    std::unique_ptr<Region> region;
  };
  uintptr_t window_;
  size_t used_ = 0, static_bytes_ = 0;
  std::vector<Variable> variables_;
  Region* dynamic_ = nullptr;
  Region* last_ = nullptr;
};

// Ticks once at every synchronisation of any thread.
extern uint32_t g_now;

}  // namespace simt
