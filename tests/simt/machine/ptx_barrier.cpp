// Named barriers, barriers in shared memory, and the bulk copies that report to them.
//
// A bulk copy takes place as late as it can, when a thread waits for its barrier.
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "cuda/ptx/barrier.cuh"
#include "machine/async_state.h"

namespace simt::ptx {
namespace {

constexpr uint32_t kMostArrivals = (1u << 20) - 1;
constexpr int64_t kMostBytes = (1 << 20) - 1;

[[noreturn]] void refuse(const std::string& text, const void* site) {
  fail(Fault::kInstruction, text.c_str(), site);
}

Mbarrier& find(uint64_t* barrier, const void* site) {
  check_alignment(barrier, 8, "mbarrier", site);
  const uint32_t address = shared_address(barrier);
  check_access(barrier, 8, Access::kAtomic, site);
  const auto found = async_state().mbarriers.find(address);
  if (found == async_state().mbarriers.end())
    refuse("an mbarrier that mbarrier.init has not set up", site);
  return found->second;
}

void initialise(uint64_t* barrier, uint32_t arrivals, const void* site) {
  check_alignment(barrier, 8, "mbarrier.init", site);
  if (arrivals == 0 || arrivals > kMostArrivals)
    refuse("mbarrier.init with " + std::to_string(arrivals) + " arrivals: expected 1 to 2^20 - 1",
           site);
  const uint32_t address = shared_address(barrier);
  check_write(barrier, 8, site);
  std::memset(barrier, 0, 8);
  Mbarrier b = {};
  b.expected = b.missing = arrivals;
  b.initialiser = g_block->current->id;
  if (!async_state().mbarriers.emplace(address, std::move(b)).second)
    refuse("mbarrier.init of an mbarrier in use: mbarrier.inval ends its use", site);
}

void invalidate(uint64_t* barrier, const void* site) {
  if (!find(barrier, site).copies.empty())
    refuse("mbarrier.inval of an mbarrier that a bulk copy will report to", site);
  async_state().mbarriers.erase(shared_address(barrier));
}

void end_phase_if_complete(Mbarrier& b, const void* site) {
  if (b.missing != 0 || b.bytes != 0) return;
  if (!b.copies.empty())
    refuse("an mbarrier's phase ends while a bulk copy that it did not expect is under way", site);
  ++b.phase;
  b.missing = b.expected;
  b.ended = std::exchange(b.arrived, Order());
}

void expect(Mbarrier& b, uint32_t bytes, const void* site) {
  b.bytes += bytes;
  if (b.bytes > kMostBytes)
    refuse("an mbarrier that expects " + std::to_string(b.bytes) + " bytes: it counts to 2^20 - 1",
           site);
}

void arrive(Mbarrier& b, const void* site) {
  if (b.missing == 0)
    refuse("more than " + std::to_string(b.expected) + " arrivals at an mbarrier in one phase, " +
               "which waits for " + std::to_string(b.bytes) + " more bytes",
           site);
  release(b.arrived);
  --b.missing;
  end_phase_if_complete(b, site);
}

// ------------------------------------------------------------------------------------- copies

void start_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                const void* site) {
  check_alignment(shared, 16, "cp.async.bulk", site);
  check_alignment(global, 16, "cp.async.bulk", site);
  if (bytes == 0 || bytes % 16 != 0)
    refuse("cp.async.bulk of " + std::to_string(bytes) + " bytes: expected a multiple of 16", site);
  if (!find(barrier, site).fenced)
    refuse("cp.async.bulk on an mbarrier without fence.mbarrier_init after mbarrier.init", site);
  const PendingCopy copy = begin_copy(shared, global, bytes, 0, site);
  find(barrier, site).copies.push_back({copy, g_block->current->id, g_now});
  ++g_now;  // what the thread does from here on is no part of what waiters get to see
}

// The bytes arrive. Waiters are ordered after what the starting thread did before the copy.
void deliver_one(Mbarrier& b) {
  Block& block = *g_block;
  const auto pick = block.random.below(static_cast<uint32_t>(b.copies.size()));
  std::swap(b.copies[pick], b.copies.back());
  const BulkCopy done = b.copies.back();
  b.copies.pop_back();
  std::memcpy(done.copy.to, done.copy.from, done.copy.size);
  const auto a = reinterpret_cast<uintptr_t>(done.copy.to);
  const Region::Span span = block.shared.region_of(a, done.copy.size)->cells(a, done.copy.size);
  for (Cell* c = span.first; c != span.last; ++c)
    c->flags = static_cast<uint16_t>((c->flags & ~kPending) | kAsyncWrite);
  std::vector<uint32_t>& known = b.arrived.known;
  known.resize(block.threads.size());
  known[done.starter] = std::max(known[done.starter], done.stamp + 1);
  b.bytes -= done.copy.size;
  end_phase_if_complete(b, nullptr);
}

// ------------------------------------------------------------------------------------- waiting

struct Wait {
  uint32_t address, parity;
};

bool ended(const Mbarrier& b, uint32_t parity) { return (b.phase & 1) != parity; }

bool ready(void* context) {
  const Wait& wait = *static_cast<Wait*>(context);
  const auto found = async_state().mbarriers.find(wait.address);
  if (found == async_state().mbarriers.end()) return true;
  Mbarrier& b = found->second;
  while (!ended(b, wait.parity) && !b.copies.empty()) deliver_one(b);
  return ended(b, wait.parity);
}

// try_wait may give up before the phase ends: it does, at times.
bool wait(uint64_t* barrier, uint32_t parity, bool blocking, const void* site) {
  if (parity > 1)
    refuse("an mbarrier's phase has parity 0 or 1, not " + std::to_string(parity), site);
  Mbarrier* b = &find(barrier, site);
  Random& random = g_block->random;
  if (!ended(*b, parity)) {
    if (blocking && random.below(2) == 0) {
      Wait context{shared_address(barrier), parity};
      wait_until("mbarrier.try_wait", &ready, &context, site);
    } else {
      if (!b->copies.empty() && random.below(2) == 0) deliver_one(*b);
      yield();
    }
    b = &find(barrier, site);
    if (!ended(*b, parity)) return false;
  }
  acquire(b->ended);
  return true;
}

void whole_warp_is_here(const char* name, const void* site) {
  whole_warp(name, nullptr, [](const Lanes&) {}, site);
}

}  // namespace
}  // namespace simt::ptx

namespace ernie::cuda {

#define SITE __builtin_return_address(0)

void barrier_sync(int id, int threads) {
  simt::ptx::whole_warp_is_here("barrier.sync.aligned", SITE);
  simt::named_barrier(id, threads, /*wait=*/true, SITE);
}
void barrier_arrive(int id, int threads) {
  simt::ptx::whole_warp_is_here("barrier.arrive.aligned", SITE);
  simt::named_barrier(id, threads, /*wait=*/false, SITE);
}

void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  simt::ptx::initialise(barrier, arrivals, SITE);
}
void mbarrier_inval(uint64_t* barrier) { simt::ptx::invalidate(barrier, SITE); }
void mbarrier_arrive(uint64_t* barrier) { simt::ptx::arrive(simt::ptx::find(barrier, SITE), SITE); }
void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes) {
  simt::ptx::expect(simt::ptx::find(barrier, SITE), bytes, SITE);
}
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  simt::Mbarrier& b = simt::ptx::find(barrier, SITE);
  simt::ptx::expect(b, bytes, SITE);
  simt::ptx::arrive(b, SITE);
}
bool mbarrier_test_wait_parity(uint64_t* barrier, uint32_t parity) {
  return simt::ptx::wait(barrier, parity, /*blocking=*/false, SITE);
}
bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity) {
  return simt::ptx::wait(barrier, parity, /*blocking=*/true, SITE);
}

void fence_mbarrier_init() {
  for (auto& [address, barrier] : simt::async_state().mbarriers)
    if (barrier.initialiser == simt::g_block->current->id) barrier.fenced = true;
}
void fence_proxy_async() {
  simt::async_state().proxy_fence[simt::g_block->current->id] = ++simt::g_now;
}

void cp_async_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  simt::ptx::start_copy(shared, global, bytes, barrier, SITE);
}

#undef SITE

}  // namespace ernie::cuda
