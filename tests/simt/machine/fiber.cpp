#include "machine/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || !defined(__linux__)
#error \
    "The SIMT machine switches fibers by x86-64 Linux code: build it there (tests/simt/README.md)"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void simt_switch_stack(void** save, void* load): the registers that a callee must keep.
asm(R"(
.text
.p2align 4
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
extern "C" __attribute__((visibility("hidden"))) void simt_switch_stack(void** save, void* load);

namespace simt {

Stacks::~Stacks() { release(); }

void Stacks::release() {
  if (base_ == nullptr) return;
  const size_t size = static_cast<size_t>(count_) * kSize;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base_, size);  // what lies at these addresses next is no stack
#endif
  munmap(base_, size);
  base_ = nullptr;
}

bool Stacks::reserve(int count) {
  if (count <= count_) return true;
  release();
  count_ = 0;
  void* p = mmap(nullptr, static_cast<size_t>(count) * kSize, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  base_ = p == MAP_FAILED ? nullptr : static_cast<char*>(p);
  if (base_ == nullptr) return false;
  count_ = count;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < count; ++i) mprotect(at(i), page, PROT_NONE);
  return true;
}

void prepare(Fiber& fiber, char* stack, int colour, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, Stacks::kSize);  // what the fiber before has left
#endif
  constexpr int kColours = 61, kColourBytes = 192, kSavedRegisters = 6;
  fiber.stack = stack;
  fiber.stack_size = Stacks::kSize;
  char* top = stack + Stacks::kSize - static_cast<size_t>(colour % kColours) * kColourBytes;
  auto* frame = reinterpret_cast<void**>(top) - 1;  // as if `entry` had been called from nowhere
  *frame = nullptr;
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = nullptr;
  fiber.stack_pointer = frame;
}

#if defined(__SANITIZE_ADDRESS__)
namespace {

struct Bounds {
  void* lowest = nullptr;
  size_t size = 0;
};

// Of the thread's own stack: told nothing, AddressSanitizer would take it for gone.
Bounds thread_stack() {
  thread_local const Bounds bounds = [] {
    Bounds b;
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &b.lowest, &b.size);
      pthread_attr_destroy(&attributes);
    }
    return b;
  }();
  return bounds;
}

}  // namespace
#endif

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  const Bounds bounds = to.stack != nullptr ? Bounds{to.stack, to.stack_size} : thread_stack();
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, bounds.lowest,
                                 bounds.size);
#endif
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_has_begun([[maybe_unused]] Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace simt
