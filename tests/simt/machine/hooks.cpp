// What the compiler calls in instrumented code. Kernels are compiled with -fsanitize=thread, for
// its calls before each load and store, and with -fsanitize=alignment,bounds; no sanitizer's
// library is linked: these functions stand in for it. Outside of kernels they do nothing.
//
// Their names and arguments are the compilers' interface to their run-time libraries.
#include <cstdint>
#include <cstring>
#include <string>

#include "machine/block.h"
#include "machine/report.h"

using simt::Access;
using simt::g_block;

namespace {

inline void access(void* p, size_t size, Access kind, const void* site) {
  if (g_block == nullptr) return;
  const simt::Fiber& fiber = g_block->current->fiber;
  const auto at = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(fiber.stack);
  if (at < fiber.stack_size) return;
  simt::check_access(p, size, kind, site);
}

}  // namespace

#define HOOK extern "C" __attribute__((visibility("hidden"), used))
#define SITE __builtin_return_address(0)

HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}

#define ACCESS_HOOKS(size)                                                                   \
  HOOK void __tsan_read##size(void* p) { access(p, size, Access::kRead, SITE); }             \
  HOOK void __tsan_write##size(void* p) { access(p, size, Access::kWrite, SITE); }           \
  HOOK void __tsan_unaligned_read##size(void* p) { access(p, size, Access::kRead, SITE); }   \
  HOOK void __tsan_unaligned_write##size(void* p) { access(p, size, Access::kWrite, SITE); } \
  HOOK void __tsan_volatile_read##size(void* p) { access(p, size, Access::kRead, SITE); }    \
  HOOK void __tsan_volatile_write##size(void* p) { access(p, size, Access::kWrite, SITE); }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

HOOK void __tsan_read_range(void* p, size_t n) { access(p, n, Access::kRead, SITE); }
HOOK void __tsan_write_range(void* p, size_t n) { access(p, n, Access::kWrite, SITE); }

// clang calls these; g++ leaves memcpy and memset as they are.
HOOK void* __tsan_memcpy(void* to, const void* from, size_t n) {
  access(const_cast<void*>(from), n, Access::kRead, SITE);
  access(to, n, Access::kWrite, SITE);
  return std::memcpy(to, from, n);
}
HOOK void* __tsan_memmove(void* to, const void* from, size_t n) {
  access(const_cast<void*>(from), n, Access::kRead, SITE);
  access(to, n, Access::kWrite, SITE);
  return std::memmove(to, from, n);
}
HOOK void* __tsan_memset(void* to, int value, size_t n) {
  access(to, n, Access::kWrite, SITE);
  return std::memset(to, value, n);
}

// Atomic operations are replaced, not accompanied. Launchers use them too, on any OS thread.
#define ATOMIC_FETCH(type, bits, name)                                          \
  HOOK type __tsan_atomic##bits##_fetch_##name(volatile type* p, type v, int) { \
    access(const_cast<type*>(p), sizeof *p, Access::kAtomic, SITE);             \
    return __atomic_fetch_##name(p, v, __ATOMIC_SEQ_CST);                       \
  }
#define ATOMIC_HOOKS(type, bits)                                                                   \
  HOOK type __tsan_atomic##bits##_load(const volatile type* p, int) {                              \
    access(const_cast<type*>(p), sizeof *p, Access::kAtomic, SITE);                                \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  HOOK void __tsan_atomic##bits##_store(volatile type* p, type v, int) {                           \
    access(const_cast<type*>(p), sizeof *p, Access::kWrite, SITE);                                 \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  HOOK type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) {                        \
    access(const_cast<type*>(p), sizeof *p, Access::kAtomic, SITE);                                \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  HOOK bool __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected,        \
                                                          type v, int, int) {                      \
    access(const_cast<type*>(p), sizeof *p, Access::kAtomic, SITE);                                \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  HOOK bool __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v,  \
                                                        int, int) {                                \
    access(const_cast<type*>(p), sizeof *p, Access::kAtomic, SITE);                                \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  ATOMIC_FETCH(type, bits, add)                                                                    \
  ATOMIC_FETCH(type, bits, sub)                                                                    \
  ATOMIC_FETCH(type, bits, and)                                                                    \
  ATOMIC_FETCH(type, bits, or)                                                                     \
  ATOMIC_FETCH(type, bits, xor)                                                                    \
  ATOMIC_FETCH(type, bits, nand)
ATOMIC_HOOKS(uint8_t, 8)
ATOMIC_HOOKS(uint16_t, 16)
ATOMIC_HOOKS(uint32_t, 32)
ATOMIC_HOOKS(uint64_t, 64)
HOOK void __tsan_atomic_thread_fence(int) {}
HOOK void __tsan_atomic_signal_fence(int) {}

// ----------------------------------------------------------------- -fsanitize=alignment,bounds

namespace {

struct SourcePlace {
  const char* file;
  uint32_t line, column;
};
struct TypeName {
  uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  SourcePlace place;
  TypeName* type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  SourcePlace place;
  TypeName *array, *index;
};

}  // namespace

HOOK void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
  if (g_block == nullptr) return;
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  const std::string text =
      std::string("uses as ") + data->type->name + " an address that is " +
      (pointer == 0 ? "null"
                    : std::to_string(pointer & (alignment - 1)) + " beyond a multiple of " +
                          std::to_string(alignment)) +
      " [" + simt::place_text(data->place.file, static_cast<int>(data->place.line)) + "]";
  simt::fail(simt::Fault::kMisaligned, text.c_str());
}

HOOK void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  if (g_block == nullptr) return;
  const std::string text = "takes element " + std::to_string(static_cast<intptr_t>(index)) +
                           " of a " + data->array->name + " [" +
                           simt::place_text(data->place.file, static_cast<int>(data->place.line)) +
                           "]";
  simt::fail(simt::Fault::kLocalBounds, text.c_str());
}
