// Stacks, and the switch between them. A switch is a dozen instructions of the CPU: swapcontext
// would make a system call for the signal mask each time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Fiber {
  void* stack_pointer = nullptr;  // while it is not running
  char* stack = nullptr;          // lowest byte; null: the stack of the thread that launches
  size_t stack_size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// A stack for each fiber of a block, kept for the next block. A guard page lies below each.
class Stacks {
 public:
  static constexpr size_t kSize = size_t{256} << 10;
  ~Stacks();
  // False where the system grants no memory.
  bool reserve(int count);
  bool contains(uintptr_t a) const {
    return a - reinterpret_cast<uintptr_t>(base_) < static_cast<size_t>(count_) * kSize;
  }
  char* at(int i) const { return base_ + static_cast<size_t>(i) * kSize; }

 private:
  void release();

  char* base_ = nullptr;
  int count_ = 0;
};

// Makes `fiber` begin at `entry`, which must never return, when it is switched to. `colour` shifts
// the first frame: at one offset, all stacks would share the same few lines of the cache.
void prepare(Fiber& fiber, char* stack, int colour, void (*entry)());

// Leaves `from` and continues `to`; returns when something switches to `from`. `from_ends`: it
// never will.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends = false);

// To be called first thing on a fiber that has just begun.
void fiber_has_begun(Fiber& fiber);

}  // namespace simt
