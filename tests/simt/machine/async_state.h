// What runs beside a block's threads: barriers in shared memory, bulk copies that report to them,
// products of warpgroups. All of it reads and writes shared memory past the threads' own way, which
// PTX calls the async proxy: what threads have written, it sees after a fence only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "cuda/ptx/wgmma.cuh"
#include "machine/block.h"
#include "machine/machine.h"

namespace simt {

struct BulkCopy {
  PendingCopy copy;
  int starter;     // thread
  uint32_t stamp;  // of its start
};

struct Mbarrier {
  uint32_t expected;  // arrivals a phase
  uint32_t missing;   // of them, in this phase
  int64_t bytes = 0;  // expected in this phase and not yet there
  uint32_t phase = 0;
  int initialiser;               // thread
  bool fenced = false;           // bulk copies may report to it
  Order arrived, ended;          // what came before this phase's arrivals, and before the last end
  std::vector<BulkCopy> copies;  // under way
};

// One product of a warpgroup. It takes place when all four warps have started it and one waits.
struct WarpgroupProduct {
  ptx::Product product;        // without registers
  uint32_t started = 0;        // bit w: by warp w of the group
  std::vector<uint32_t> a, b;  // 8 words, 32 bytes along K, of each of 64 rows, and of each column
  Order order;                 // of the reads of a and b
  int delivered = 0;           // to threads
};

struct Warpgroup {
  std::deque<WarpgroupProduct> products;  // not yet delivered to all threads
  size_t dropped = 0;                     // products before these
  size_t done = 0;                        // products that have taken place
  bool busy = false;                      // a thread is at it
};

struct WarpProducts {
  size_t started = 0;
  std::vector<size_t> groups;  // products started before each commit
  size_t target = 0;           // of the wait under way
  bool fenced = false;         // since the last wait
};

// What a thread gets when it waits.
struct Delivery {
  size_t product;
  uint32_t* d;
  bool follows;  // an earlier one for the same registers, whose result it begins with
  std::vector<uint32_t> begin;
};

struct AsyncState {
  explicit AsyncState(size_t threads);

  std::map<uint32_t, Mbarrier> mbarriers;  // by address
  std::vector<uint32_t> proxy_fence;       // of each thread, the last
  std::vector<Warpgroup> warpgroups;
  std::vector<WarpProducts> warps;
  std::vector<std::deque<Delivery>> deliveries;  // to each thread
};

// Of the block that runs.
AsyncState& async_state();

// A read of shared memory by the async proxy, which the running thread has started.
void check_async_read(const void* shared, size_t size, const void* site);

// Fails where a block ends before what it has started.
void check_async_end(Block& block);

}  // namespace simt
