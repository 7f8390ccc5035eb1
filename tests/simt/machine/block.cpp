#include "machine/block.h"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <numeric>

#include "machine/async_state.h"
#include "machine/report.h"

namespace simt {

thread_local Block* g_block = nullptr;
uint32_t g_now = 1;

namespace {

double g_deadline = 0;

// Of this OS thread, and not of the clock on the wall: the machine may be busy with other things.
double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Ends launches that would never end: seconds of CPU time.
double time_limit() {
  const char* value = std::getenv("ERNIE_SIMT_TIMEOUT");
  return value != nullptr ? std::atof(value) : 120;
}

[[noreturn]] void thread_main() {
  Block& block = *g_block;
  fiber_has_begun(block.current->fiber);
  block.launch.run(block.launch.arguments);
  block.exit_thread();
}

uint64_t volume(const Extent& e) { return uint64_t{e.x} * e.y * e.z; }

Extent unfold(uint64_t i, const Extent& e) {
  return {static_cast<unsigned>(i % e.x), static_cast<unsigned>(i / e.x % e.y),
          static_cast<unsigned>(i / (uint64_t{e.x} * e.y))};
}

}  // namespace

Block::Block(const Launch& l, Random& r, Stacks& stacks, uint32_t stamp)
    : launch(l), random(r), launch_stamp(stamp), stacks_(stacks) {
  const auto count = static_cast<int>(volume(l.block));
  threads.resize(static_cast<size_t>(count));
  warps.resize(static_cast<size_t>((count + kWarpSize - 1) / kWarpSize));
  warp_time.resize(static_cast<size_t>((count + kWarpSize - 1) / kWarpSize));
  for (int i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.id = i;
    t.lane = i % kWarpSize;
    t.warp = i / kWarpSize;
    t.index = unfold(static_cast<uint64_t>(i), l.block);
  }
  shared.set_dynamic(l.dynamic_shared);
}

void Block::begin_threads() {
  alive = static_cast<int>(threads.size());
  ready_.clear();
  for (Thread& t : threads) {
    t.state = State::kReady;
    t.open_group.clear();
    t.groups.clear();
    t.known.clear();
    prepare(t.fiber, stacks_.at(t.id), t.id, &thread_main);
    ready_.push_back(t.id);
  }
  for (Warp& w : warps) w = Warp();
  if (const auto rest = threads.size() % kWarpSize; rest != 0) warps.back().gone = ~0u << rest;
  for (NamedBarrier& b : named) b = NamedBarrier();
  orders.clear();
  async.reset();
  at_barrier = conditions = 0;
}

void Block::run(uint64_t block_number) {
  number = block_number;
  index = unfold(block_number, launch.grid);
  block_stamp = barrier_time = ++g_now;
  std::fill(warp_time.begin(), warp_time.end(), g_now);
  fuel = 1 + random.below(kFuel);
  shared.poison();
  begin_threads();
  g_block = this;
  const auto pick = random.below(static_cast<uint32_t>(ready_.size()));
  std::swap(ready_[pick], ready_.back());
  current = &threads[ready_.back()];
  ready_.pop_back();
  switch_fiber(scheduler_, current->fiber);
  g_block = nullptr;
}

void Block::reschedule() {
  Thread& from = *current;
  if ((++switches_ & 0xfff) == 0 && cpu_seconds() > g_deadline)
    fail(Fault::kTimeout, "the launch has run longer than ERNIE_SIMT_TIMEOUT allows");
  while (ready_.empty() || (conditions > 0 && (switches_ & 15) == 0)) {
    if ((conditions > 0 && poll_conditions()) || !ready_.empty()) break;
    if (alive == 0) {
      switch_fiber(from.fiber, scheduler_, true);
      __builtin_unreachable();
    }
    report_deadlock();
  }
  const uint32_t pick = random.below(static_cast<uint32_t>(ready_.size()));
  std::swap(ready_[pick], ready_.back());
  Thread& to = threads[ready_.back()];
  ready_.pop_back();
  if (&to == &from) return;
  current = &to;
  switch_fiber(from.fiber, to.fiber, from.state == State::kExited);
}

bool Block::poll_conditions() {
  bool any = false;
  for (Thread& t : threads) {
    if (t.state != State::kCondition || !t.ready(t.payload)) continue;
    make_ready(t);
    --conditions;
    any = true;
  }
  return any;
}

void Block::exit_thread() {
  Thread& t = *current;
  wait_copy_groups(0);
  for (const PendingCopy& copy : t.open_group) finish_copy(copy);
  if (alive == 1) check_async_end(*this);
  t.state = State::kExited;
  --alive;
  warps[t.warp].gone |= 1u << t.lane;
  check_warp(t.warp);
  check_block_barrier();
  reschedule();
  __builtin_unreachable();
}

void Block::stop() {
  failed_ = true;
  switch_fiber(current->fiber, scheduler_, true);
  __builtin_unreachable();
}

std::vector<uint32_t> Block::knowledge(const Thread& t) const {
  std::vector<uint32_t> known(threads.size(), barrier_time);
  for (size_t s = 0; s < known.size(); ++s) {
    if (static_cast<int>(s) / kWarpSize == t.warp) known[s] = std::max(known[s], warp_time[t.warp]);
    if (!t.known.empty()) known[s] = std::max(known[s], t.known[s]);
  }
  return known;
}

void Block::learn(Thread& t, const std::vector<uint32_t>& known) {
  if (t.known.empty()) t.known.resize(threads.size());
  for (size_t s = 0; s < known.size(); ++s) t.known[s] = std::max(t.known[s], known[s]);
}

void Block::report_deadlock() {
  std::string text = "deadlock: ";
  text += describe_waiting(*this);
  fail(Fault::kDeadlock, text.c_str());
}

// ------------------------------------------------------------------------------------- the thread

Extent thread_index() { return g_block->current->index; }
Extent block_index() { return g_block->index; }
Extent block_extent() { return g_block->launch.block; }
Extent grid_extent() { return g_block->launch.grid; }
int lane_index() { return g_block->current->lane; }
void yield() { g_block->preempt(); }

void* static_shared(const void* key, size_t size, size_t alignment, const char* name) {
  SharedMemory& shared = g_block->shared;
  void* p = shared.variable(key, size, alignment, name);
  constexpr size_t kStaticLimit = size_t{48} << 10;
  if (shared.static_bytes() > kStaticLimit)
    fail(Fault::kInstruction, "more than 48 KiB of static shared memory");
  return p;
}
void* dynamic_shared() { return g_block->shared.dynamic(); }

uint32_t shared_address(const void* shared) {
  const auto a = reinterpret_cast<uintptr_t>(shared);
  if (!g_block->shared.contains(a))
    fail(Fault::kInstruction, "an address of shared memory was expected",
         __builtin_return_address(0));
  return static_cast<uint32_t>(a - g_block->shared.window());
}

void fail(Fault fault, const char* text, const void* site) {
  Block& block = *g_block;
  block.fault = fault;
  block.fault_text = describe_fault(block, text, site);
  block.stop();
}

// ------------------------------------------------------------------------------------- launches

namespace {
uint64_t g_seed = [] {
  const char* value = std::getenv("ERNIE_SIMT_SEED");
  return value != nullptr ? std::strtoull(value, nullptr, 10) : 1;
}();
Random g_random(g_seed);
Extent g_grid_limit{};

unsigned limited(unsigned extent, unsigned limit) {
  return limit == 0 ? extent : std::min(extent, limit);
}
}  // namespace

void set_grid_limit(const Extent& limit) { g_grid_limit = limit; }

void set_seed(uint64_t seed) {
  g_seed = seed;
  g_random = Random(seed);
}
uint64_t seed() { return g_seed; }

Outcome run_grid(const Launch& asked) {
  static Stacks stacks;
  Launch launch = asked;
  launch.grid = {limited(asked.grid.x, g_grid_limit.x), limited(asked.grid.y, g_grid_limit.y),
                 limited(asked.grid.z, g_grid_limit.z)};
  if (!stacks.reserve(static_cast<int>(volume(launch.block))))
    return {false, Fault::kTimeout, "the SIMT machine found no memory for its stacks"};
  g_deadline = cpu_seconds() + time_limit();
  std::vector<uint32_t> order(volume(launch.grid));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[g_random.below(static_cast<uint32_t>(i))]);
  Block block(launch, g_random, stacks, ++g_now);
  for (const uint32_t number : order) {
    block.run(number);
    if (block.failed()) return {false, block.fault, block.fault_text};
  }
  ++g_now;  // what comes next is a later launch
  return {};
}

}  // namespace simt
