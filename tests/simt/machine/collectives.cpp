// Where threads wait for each other, and what that orders for the race detector.
#include <algorithm>
#include <cstring>
#include <string>

#include "machine/block.h"
#include "machine/report.h"

namespace simt {
namespace {

Thread* lane_of(Block& block, int warp, int lane) {
  const size_t id = static_cast<size_t>(warp) * kWarpSize + lane;
  return id < block.threads.size() ? &block.threads[id] : nullptr;
}

bool gone(const Thread* t) { return t == nullptr || t->state == State::kExited; }

// Whether `other` waits for the same collective as `t`.
bool meets(const Thread& t, const Thread& other) {
  return other.state == State::kWarp && other.mask == t.mask &&
         std::strcmp(other.what, t.what) == 0;
}

bool complete(Block& block, const Thread& t) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(t.mask >> lane & 1)) continue;
    const Thread* other = lane_of(block, t.warp, lane);
    if (!gone(other) && !meets(t, *other)) return false;
  }
  return true;
}

// All lanes of t's collective that still live are there: combine, and let them go.
void finish(Block& block, const Thread& t, Combine combine) {
  Lanes lanes = {};
  const uint32_t mask = t.mask;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    Thread* other = lane_of(block, t.warp, lane);
    if (!(mask >> lane & 1) || gone(other)) continue;
    lanes.payload[lane] = other->payload;
    lanes.present |= 1u << lane;
  }
  combine(lanes);
  const int warp = t.warp;
  block.warps[warp].waiting &= ~lanes.present;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (lanes.has(lane)) block.make_ready(*lane_of(block, warp, lane));
}

std::string lane_text(int lane) { return "lane " + std::to_string(lane); }

std::string call_text(const Thread& t) { return std::string(t.what) + " with mask " + hex(t.mask); }

// What can be said against the call at once, rather than as a deadlock later.
void refuse_misuse(Block& block, const Thread& me, Exited exited) {
  if (!(me.mask >> me.lane & 1))
    fail(Fault::kDivergence, (call_text(me) + ": the mask lacks the calling lane").c_str(),
         me.site);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(me.mask >> lane & 1)) continue;
    const Thread* other = lane_of(block, me.warp, lane);
    if (gone(other)) {
      if (exited == Exited::kIgnored) continue;
      fail(Fault::kDivergence,
           (call_text(me) + ": " + lane_text(lane) +
            (other == nullptr ? " does not exist" : " has returned") +
            ", but the instruction needs the whole warp")
               .c_str(),
           me.site);
    }
    if (other->state == State::kWarp && (other->mask >> me.lane & 1) && !meets(me, *other))
      fail(Fault::kDivergence,
           (call_text(me) + ": " + lane_text(lane) + " waits for this lane at " +
            call_text(*other) + " " + site_text(other->site))
               .c_str(),
           me.site);
  }
}

}  // namespace

void warp_collective(const char* name, uint32_t mask, void* payload, Combine combine, Exited exited,
                     const void* site) {
  Block& block = *g_block;
  Thread& me = *block.current;
  me.what = name;
  me.mask = mask;
  me.payload = payload;
  me.site = site;
  me.combine = combine;
  Warp& warp = block.warps[me.warp];
  const uint32_t own = 1u << me.lane;
  if (warp.waiting == 0) {
    warp.name = name;
    warp.mask = mask;
    warp.uniform = true;
  }
  const bool same = warp.uniform && warp.name == name && warp.mask == mask;
  if (!same || !(mask & own) || (exited == Exited::kRefused && (mask & warp.gone)))
    refuse_misuse(block, me, exited);
  warp.uniform = same;
  warp.waiting |= own;
  me.state = State::kWarp;
  if ((mask & ~warp.gone & ~warp.waiting) == 0 && (same || complete(block, me)))
    finish(block, me, combine);
  block.reschedule();
}

void Block::check_warp(int warp) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    Thread* t = lane_of(*this, warp, lane);
    if (t != nullptr && t->state == State::kWarp && complete(*this, *t))
      finish(*this, *t, t->combine);
  }
}

void warp_barrier(uint32_t mask, const void* site) {
  warp_collective(
      "__syncwarp", mask, nullptr,
      [](const Lanes& lanes) {
        Block& b = *g_block;
        const int warp = b.current->warp;
        uint32_t live = 0;
        bool fine = false;  // some lane knows more than whole barriers have told it
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const Thread* t = lane_of(b, warp, lane);
          if (gone(t) && !lanes.has(lane)) continue;
          live |= 1u << lane;
          fine = fine || !t->known.empty();
        }
        ++g_now;
        if (lanes.present == live && !fine) {
          b.warp_time[warp] = g_now;
          return;
        }
        std::vector<uint32_t> all(b.threads.size());
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (!lanes.has(lane)) continue;
          const Thread& t = *lane_of(b, warp, lane);
          const std::vector<uint32_t> known = b.knowledge(t);
          for (size_t s = 0; s < all.size(); ++s) all[s] = std::max(all[s], known[s]);
          all[t.id] = g_now;
        }
        for (int lane = 0; lane < kWarpSize; ++lane)
          if (lanes.has(lane)) b.learn(*lane_of(b, warp, lane), all);
      },
      Exited::kIgnored, site);
}

// ------------------------------------------------------------------------------ block barriers

int block_barrier(Vote vote, int predicate, const char* file, int line) {
  Block& block = *g_block;
  Thread& me = *block.current;
  for (const Thread& other : block.threads)
    if (other.state == State::kBlock) {
      if (other.line == line && std::strcmp(other.what, file) == 0) break;
      fail(Fault::kDivergence, ("divergent barriers: this thread is at the barrier of " +
                                place_text(file, line) + ", thread " + index_text(other.index) +
                                " waits at that of " + place_text(other.what, other.line))
                                   .c_str());
    }
  me.what = file;
  me.line = line;
  me.predicate = predicate != 0;
  me.state = State::kBlock;
  ++block.at_barrier;
  block.check_block_barrier();
  block.reschedule();
  const int count = block.barrier_result;
  switch (vote) {
    case Vote::kNone:
      return 0;
    case Vote::kOr:
      return (count & 0xffff) > 0;
    case Vote::kAnd:
      return (count & 0xffff) == count >> 16;
    case Vote::kCount:
      return count & 0xffff;
  }
  return 0;
}

void Block::check_block_barrier() {
  if (at_barrier == 0 || at_barrier < alive) return;
  int voted = 0;
  for (Thread& t : threads)
    if (t.state == State::kBlock) {
      voted += t.predicate;
      make_ready(t);
    }
  barrier_result = at_barrier << 16 | voted;  // stays until all have read it: nobody gets further
  at_barrier = 0;
  barrier_time = ++g_now;
}

void named_barrier(int id, int count, bool wait, const void* site) {
  Block& block = *g_block;
  Thread& me = *block.current;
  const std::string name = "barrier " + std::to_string(id);
  if (id < 0 || id > 15 || count <= 0 || count % kWarpSize != 0)
    fail(Fault::kInstruction,
         (name + " of " + std::to_string(count) + " threads: expected 0 to 15 and a multiple of 32")
             .c_str(),
         site);
  NamedBarrier& b = block.named[id];
  if (b.arrived.empty()) b.expected = count;
  if (b.expected != count ||
      std::find(b.waiting.begin(), b.waiting.end(), me.id) != b.waiting.end())
    fail(Fault::kDivergence,
         (name + ": " + std::to_string(count) + " threads here, " + std::to_string(b.expected) +
          " where it was entered first")
             .c_str(),
         site);
  const std::vector<uint32_t> known = block.knowledge(me);
  b.known.resize(known.size());
  for (size_t s = 0; s < known.size(); ++s) b.known[s] = std::max(b.known[s], known[s]);
  b.known[me.id] = ++g_now;
  b.arrived.push_back(me.id);
  if (wait) {
    me.what = "a named barrier";
    me.line = id;
    me.site = site;
    me.state = State::kNamed;
    b.waiting.push_back(me.id);
  }
  if (static_cast<int>(b.arrived.size()) == b.expected) {
    for (const int id_waiting : b.waiting) {
      block.learn(block.threads[id_waiting], b.known);
      block.make_ready(block.threads[id_waiting]);
    }
    b = NamedBarrier();
  }
  if (wait) block.reschedule();
}

// ---------------------------------------------------------------------------- order and waiting

Order* make_order() {
  g_block->orders.push_back(std::make_unique<Order>());
  return g_block->orders.back().get();
}

void release(Order& order) {
  Block& block = *g_block;
  const std::vector<uint32_t> known = block.knowledge(*block.current);
  order.known.resize(known.size());
  for (size_t s = 0; s < known.size(); ++s) order.known[s] = std::max(order.known[s], known[s]);
  order.known[block.current->id] = ++g_now;
}

void acquire(const Order& order) {
  if (!order.known.empty()) g_block->learn(*g_block->current, order.known);
}

void wait_until(const char* name, bool (*ready)(void*), void* context, const void* site) {
  Block& block = *g_block;
  Thread& me = *block.current;
  if (ready(context)) return;
  me.what = name;
  me.ready = ready;
  me.payload = context;
  me.site = site;
  me.state = State::kCondition;
  ++block.conditions;
  block.reschedule();
}

// -------------------------------------------------------------------------------- copy groups

void add_to_copy_group(const PendingCopy& copy) { g_block->current->open_group.push_back(copy); }

void commit_copy_group() {
  Thread& t = *g_block->current;
  t.groups.push_back(std::move(t.open_group));
  t.open_group.clear();
}

void wait_copy_groups(int pending) {
  Thread& t = *g_block->current;
  while (static_cast<int>(t.groups.size()) > pending) {
    for (const PendingCopy& copy : t.groups.front()) finish_copy(copy);
    t.groups.pop_front();
  }
}

}  // namespace simt
