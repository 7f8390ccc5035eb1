// What stand-ins for CUDA's functions and for PTX instructions are written with. They run on the
// fiber of one CUDA thread; everything here acts for that thread.
//
// A stand-in that touches memory for the thread says so by check_read() and its like: code of the
// machine is not instrumented, the kernels are (hooks.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// ------------------------------------------------------------------------------- the thread

struct Extent {
  unsigned x, y, z;
};
// The same at every call of one thread, which is what gnu::const tells the compiler.
[[gnu::const]] Extent thread_index();
[[gnu::const]] Extent block_index();
[[gnu::const]] Extent block_extent();
[[gnu::const]] Extent grid_extent();
int lane_index();

// Lets other threads go first; a thread that polls must call it.
void yield();

// ------------------------------------------------------------------------------------- faults

enum class Fault {
  kOutOfBounds,
  kMisaligned,
  kUninitialised,
  kRace,
  kPendingCopy,  // touched before the copy was waited for
  kDivergence,   // lanes or threads disagree about a collective
  kDeadlock,
  kTimeout,
  kLocalBounds,  // an index beyond a local array
  kInstruction,  // an instruction used against its rules
  kStackOverflow,
};

// Ends the launch, which then reports this fault. `site` is a return address inside the kernel.
[[noreturn]] void fail(Fault fault, const char* text, const void* site = nullptr);

// ------------------------------------------------------------------------------ shared memory

// The block's variable that `key` stands for; the first use in a launch makes it.
void* static_shared(const void* key, size_t size, size_t alignment, const char* name);
void* dynamic_shared();
// The address that PTX gives shared memory: bytes from the start of the block's window. Refuses
// memory that is not shared.
uint32_t shared_address(const void* shared);

// ------------------------------------------------------------- memory, on behalf of the thread

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// Bounds, uninitialised reads, races, copies under way. Alignment is not checked here.
void check_access(const void* address, size_t size, Access access, const void* site);
inline void check_read(const void* p, size_t n, const void* site) {
  check_access(p, n, Access::kRead, site);
}
inline void check_write(const void* p, size_t n, const void* site) {
  check_access(p, n, Access::kWrite, site);
}
// `what` is the instruction's name.
void check_alignment(const void* address, size_t alignment, const char* what, const void* site);

// Copies that end later. Until finish_copy, nobody may touch the destination; the bytes arrive
// then, and count as written by the thread that finishes. `size` bytes are copied, `fill` zeros
// follow.
struct PendingCopy {
  char* to;
  const char* from;
  uint32_t size, fill;
};
PendingCopy begin_copy(void* to, const void* from, uint32_t size, uint32_t fill, const void* site);
void finish_copy(const PendingCopy& copy);

// cp.async groups of the thread.
void add_to_copy_group(const PendingCopy& copy);
void commit_copy_group();
void wait_copy_groups(int pending);

// ------------------------------------------------------------------------- warp collectives

// Where a thread's operands lie while its warp gathers: payload[l] is that of lane l, null where
// the lane takes no part.
struct Lanes {
  void* payload[32];
  uint32_t present;  // bit l: lane l takes part

  template <class T>
  T& of(int lane) const {
    return *static_cast<T*>(payload[lane]);
  }
  bool has(int lane) const { return present >> lane & 1; }
};
using Combine = void (*)(const Lanes&);

enum class Exited : uint8_t {
  kIgnored,  // lanes of the mask that have returned are not waited for
  kRefused,  // .aligned instructions: the whole warp must be there
};

// Waits for all lanes of `mask`, which must come with the same name (its text is compared) and the
// same mask; then one of them runs `combine` for all, which reads operands from the payloads and
// leaves results there. Lanes that come with another name or mask, or never, are reported.
void warp_collective(const char* name, uint32_t mask, void* payload, Combine combine,
                     Exited exited = Exited::kIgnored, const void* site = nullptr);

// An instruction of the whole warp.
inline void whole_warp(const char* name, void* payload, Combine combine, const void* site) {
  warp_collective(name, 0xffffffffu, payload, combine, Exited::kRefused, site);
}

// ------------------------------------------------------------------- barriers and their order
//
// The race detector takes two accesses of different threads for ordered only where one of these
// lies between them. Shuffles, votes and tensor instructions order nothing, as in CUDA.

enum class Vote : uint8_t { kNone, kOr, kAnd, kCount };
// __syncthreads and its variants; file and line tell one barrier from another.
int block_barrier(Vote vote, int predicate, const char* file, int line);
// barrier.sync and barrier.arrive of barriers 1 to 15 among `threads` threads, a multiple of 32.
void named_barrier(int id, int threads, bool wait, const void* site);
// __syncwarp.
void warp_barrier(uint32_t mask, const void* site);

// A point in time that another thread can take note of: release() adds what the thread has done and
// seen so far, acquire() makes the thread see it. For barriers in memory (mbarrier).
class Order;
Order* make_order();  // lives until the block ends
void release(Order& order);
void acquire(const Order& order);

// Waits until `ready(context)`; the name is reported if that never comes.
void wait_until(const char* name, bool (*ready)(void*), void* context, const void* site);

// --------------------------------------------------------------------------------- launches

struct Launch {
  const void* kernel;  // the kernel's address: its name is found from it
  void (*run)(void*);  // calls the kernel once, on a thread's fiber
  void* arguments;     // of `run`; kernels may read them
  size_t arguments_size;
  Extent grid, block;
  size_t dynamic_shared;
};

}  // namespace simt
