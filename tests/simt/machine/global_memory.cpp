#include "machine/global_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <iterator>
#include <new>

#include "machine/report.h"

namespace simt {
namespace {

void* reserve(size_t size) {
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

}  // namespace

GlobalMemory& global_memory() {
  static GlobalMemory* memory = new GlobalMemory();  // outlives all tensors
  return *memory;
}

GlobalMemory::GlobalMemory()
    : base_(reinterpret_cast<uintptr_t>(reserve(kSpace))),
      owner_(static_cast<Region**>(reserve((kSpace >> kPageShift) * sizeof(Region*)))) {
  holes_[base_ + kPage] = kSpace - 2 * kPage;
}

// The lowest hole that is large enough, with a page left free behind the allocation.
void* GlobalMemory::allocate(size_t size) {
  if (size > kSpace) return nullptr;
  const size_t pages = (size + kPage - 1) / kPage * kPage, wanted = pages + kPage;
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->second < wanted) continue;
    const auto [begin, length] = *hole;
    holes_.erase(hole);
    if (length > wanted) holes_[begin + wanted] = length - wanted;
    auto region = std::make_unique<Region>(
        begin, size,
        "allocation " + std::to_string(++made_) + " (" + std::to_string(size) + " bytes)",
        /*shared=*/false);
    for (uintptr_t a = begin; a < begin + pages; a += kPage)
      owner_[(a - base_) >> kPageShift] = region.get();
    std::memset(reinterpret_cast<void*>(begin), 0xff, size);
    freed_.erase(freed_.lower_bound(begin), freed_.lower_bound(begin + wanted));
    live_[begin] = std::move(region);
    bytes_ += pages;
    return reinterpret_cast<void*>(begin);
  }
  return nullptr;
}

bool GlobalMemory::release(void* p) {
  const auto found = live_.find(reinterpret_cast<uintptr_t>(p));
  if (found == live_.end()) return false;
  const uintptr_t begin = found->first;
  const size_t pages = (found->second->size() + kPage - 1) / kPage * kPage;
  for (uintptr_t a = begin; a < begin + pages; a += kPage)
    owner_[(a - base_) >> kPageShift] = nullptr;
  madvise(p, pages, MADV_DONTNEED);
  freed_[begin] = found->second->name();
  live_.erase(found);
  bytes_ -= pages;

  auto hole = holes_.emplace(begin, pages + kPage).first;
  const auto next = std::next(hole);
  if (next != holes_.end() && hole->first + hole->second == next->first) {
    hole->second += next->second;
    holes_.erase(next);
  }
  if (hole != holes_.begin()) {
    const auto before = std::prev(hole);
    if (before->first + before->second == hole->first) {
      before->second += hole->second;
      holes_.erase(hole);
    }
  }
  return true;
}

std::string GlobalMemory::describe(uintptr_t a) const {
  if (!contains(a)) return a < (1 << 16) ? "at a null pointer" : "of memory that is the host's";
  auto freed = freed_.upper_bound(a);
  auto above = live_.upper_bound(a);
  if (above != live_.begin()) {
    const Region& below = *std::prev(above)->second;
    if (freed == freed_.begin() || std::prev(freed)->first < below.begin())
      return beside_text(below, a);
  }
  if (freed != freed_.begin()) return "of " + std::prev(freed)->second + ", which has been freed";
  return above == live_.end() ? "of no allocation" : beside_text(*above->second, a);
}

void GlobalMemory::forget_stamps() {
  for (auto& [begin, region] : live_) region->forget_stamps();
}

}  // namespace simt
