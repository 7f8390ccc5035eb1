// The machine's inside: one block of threads at a time, each a fiber, scheduled at random.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "machine/fiber.h"
#include "machine/machine.h"
#include "machine/shadow.h"

namespace simt {

constexpr int kWarpSize = 32;

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * uint64_t{n} >> 32); }

 private:
  uint64_t state_;
};

enum class State : uint8_t { kReady, kWarp, kBlock, kNamed, kCondition, kExited };

struct Thread {
  Fiber fiber;
  Extent index;
  int id, lane, warp;  // in the block
  State state;

  // What it waits for.
  const char* what = nullptr;  // the collective's name, or the barrier's file
  int line = 0;                // of the barrier, or its number
  uint32_t mask = 0;
  void* payload = nullptr;
  const void* site = nullptr;
  Combine combine = nullptr;
  bool (*ready)(void*) = nullptr;
  int predicate = 0;

  std::vector<PendingCopy> open_group;
  std::deque<std::vector<PendingCopy>> groups;

  // Accesses of thread s with a stamp below known[s] come before what this thread does now; empty
  // until the block uses anything finer than whole barriers.
  std::vector<uint32_t> known;
};

// What the lanes of a warp are about, to spare most arrivals a look at each of them.
struct Warp {
  uint32_t gone = 0;     // lanes that have returned, or never were
  uint32_t waiting = 0;  // lanes at a collective
  // While `uniform`: all of them at this one.
  const char* name = nullptr;
  uint32_t mask = 0;
  bool uniform = false;
};

class Order {
 public:
  std::vector<uint32_t> known;
};

struct NamedBarrier {
  int expected = 0;
  std::vector<int> arrived, waiting;
  std::vector<uint32_t> known;  // of all that have arrived
};

struct AsyncState;

class Block {
 public:
  static constexpr uint32_t kFuel = 400;  // accesses between preemptions, at most

  Block(const Launch& launch, Random& random, Stacks& stacks, uint32_t launch_stamp);

  void run(uint64_t number);  // block `number` of the grid; returns at its end or at a fault
  bool failed() const { return failed_; }

  // Called on fibers.
  void reschedule();  // the running thread is not ready, or has put itself in line again
  void preempt() {
    ready_.push_back(current->id);
    reschedule();
  }
  void make_ready(Thread& t) {
    t.state = State::kReady;
    ready_.push_back(t.id);
  }
  [[noreturn]] void stop();  // after a fault
  [[noreturn]] void exit_thread();
  // Releases whatever waits only for threads that are gone. Lanes of `warp` first.
  void check_warp(int warp);
  void check_block_barrier();

  // Whether thread s's access at `stamp` comes before what `t` does now.
  bool ordered(const Thread& t, int s, uint32_t stamp) const {
    if (stamp < barrier_time || s == t.id) return true;
    if (s / kWarpSize == t.warp && stamp < warp_time[t.warp]) return true;
    return !t.known.empty() && stamp < t.known[s];
  }
  const Stacks* stacks() const { return &stacks_; }
  std::vector<uint32_t> knowledge(const Thread& t) const;
  void learn(Thread& t, const std::vector<uint32_t>& known);

  const Launch& launch;
  Random& random;
  Thread* current = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0;
  Extent index{};
  uint64_t number = 0;
  SharedMemory shared;

  uint32_t launch_stamp;  // stamps below are of earlier launches
  uint32_t block_stamp = 0;
  uint32_t barrier_time = 0;
  std::vector<uint32_t> warp_time;
  NamedBarrier named[16];
  std::vector<std::unique_ptr<Order>> orders;
  std::shared_ptr<AsyncState> async;  // made when first used
  int at_barrier = 0;                 // threads that wait at the block's barrier
  int conditions = 0;                 // and in wait_until
  int barrier_result = 0;
  uint32_t fuel = 1;  // accesses until the next preemption

  std::string fault_text;
  Fault fault{};

  friend void fail(Fault, const char*, const void*);

 private:
  void begin_threads();
  bool poll_conditions();
  void report_deadlock();

  Stacks& stacks_;
  Fiber scheduler_;
  std::vector<int> ready_;
  bool failed_ = false;
  uint32_t switches_ = 0;
};

// Of this OS thread; null outside of kernels.
extern thread_local Block* g_block __attribute__((tls_model("initial-exec")));

// Runs a grid, one block after the other in random order. Empty, or what went wrong.
struct Outcome {
  bool ok = true;
  Fault fault{};
  std::string text;
};
Outcome run_grid(const Launch& launch);

// Launches get no more blocks than this along each axis, whatever they ask for: kernels that loop
// by gridDim then do so. Extents of 0 set no limit.
void set_grid_limit(const Extent& limit);

// Of the next launch; each takes a fresh state from it.
void set_seed(uint64_t seed);
uint64_t seed();

}  // namespace simt
