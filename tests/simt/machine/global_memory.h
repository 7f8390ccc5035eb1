// The machine's global memory: one reservation of addresses, of which pages are given to
// allocations, never two allocations side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "machine/shadow.h"

namespace simt {

class GlobalMemory {
 public:
  static constexpr size_t kSpace = size_t{8} << 30;  // bytes: what the device says it has
  GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;

  // Null where the space is used up. Fresh memory is full of NaN, and reading it is reported.
  void* allocate(size_t size);
  bool release(void* p);  // false: not the start of a live allocation

  bool contains(uintptr_t a) const { return a - base_ < kSpace; }
  // The live allocation that holds n bytes at a, or null.
  Region* region_of(uintptr_t a, size_t n) {
    if (!contains(a)) return nullptr;
    Region* r = owner_[(a - base_) >> kPageShift];
    return r != nullptr && r->holds(a, n) ? r : nullptr;
  }
  std::string describe(uintptr_t a) const;  // of an address that no allocation holds
  size_t bytes_free() const { return kSpace - bytes_; }
  size_t bytes_allocated() const { return bytes_; }  // whole pages
  size_t allocations() const { return live_.size(); }
  void forget_stamps();

 private:
  static constexpr int kPageShift = 12;
  static constexpr size_t kPage = size_t{1} << kPageShift;
  uintptr_t base_;
  Region** owner_;                     // of each page
  std::map<uintptr_t, size_t> holes_;  // free pages: begin, bytes
  std::map<uintptr_t, std::unique_ptr<Region>> live_;
  std::map<uintptr_t, std::string> freed_;  // names of what last lay there, for reports
  size_t bytes_ = 0;
  uint64_t made_ = 0;
};

GlobalMemory& global_memory();

}  // namespace simt
