#include "core/ceiling.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "core/memory.h"
#include "core/parallel.h"

namespace ernie {
namespace {

// Independent sums of 64-bit words: wide loads, and nothing that the compiler may leave out.
uint64_t sum_words(const uint64_t* words, int64_t count) {
  uint64_t lanes[32] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32)
    for (int lane = 0; lane < 32; ++lane) lanes[lane] += words[i + lane];
  uint64_t total = 0;
  for (uint64_t lane : lanes) total += lane;
  return total;
}

}  // namespace

double measure_read_bandwidth(int64_t nbytes) {
  constexpr int64_t kChunk = 1 << 20;
  constexpr int64_t kMost = 1 << 30;  // all of it is written: more could exhaust the machine
  if (nbytes < kChunk || nbytes > kMost)
    throw ArgumentError("measure_read_bandwidth: nbytes: expected 2^20 to 2^30, got " +
                        std::to_string(nbytes));
  const int64_t chunks = nbytes / kChunk;
  const auto memory = allocate(chunks * kChunk, {});
  std::memset(memory.get(), 1, chunks * kChunk);
  const auto* words = static_cast<const uint64_t*>(memory.get());
  constexpr int64_t kWords = kChunk / sizeof(uint64_t);

  std::atomic<uint64_t> sink{0};
  const auto begin = std::chrono::steady_clock::now();
  parallel_for(chunks, 8, [&](int64_t first, int64_t last) {
    sink.fetch_add(sum_words(words + first * kWords, (last - first) * kWords));
  });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(chunks * kChunk) / took.count();
}

}  // namespace ernie
