#include "machine/async_state.h"

#include <string>

#include "machine/report.h"

namespace simt {

AsyncState::AsyncState(size_t threads)
    : proxy_fence(threads),
      warpgroups((threads + 127) / 128),
      warps((threads + kWarpSize - 1) / kWarpSize),
      deliveries(threads) {}

AsyncState& async_state() {
  Block& block = *g_block;
  if (block.async == nullptr) block.async = std::make_shared<AsyncState>(block.threads.size());
  return *block.async;
}

void check_async_read(const void* shared, size_t size, const void* site) {
  check_read(shared, size, site);
  if (!ERNIE_SIMT_CHECKS) return;
  Block& block = *g_block;
  const std::vector<uint32_t>& fence = async_state().proxy_fence;
  const auto a = reinterpret_cast<uintptr_t>(shared);
  Region& region = *block.shared.region_of(a, size);
  const Region::Span span = region.cells(a, size);
  for (const Cell* c = span.first; c != span.last; ++c) {
    if (c->flags & kAsyncWrite || fence[c->write_thread] > c->write_stamp ||
        fence[block.current->id] > c->write_stamp)
      continue;
    fail(Fault::kRace,
         ("the async proxy reads " + std::to_string(size) + " bytes of " + region.name() +
          ", byte " + std::to_string(region.offset_of(c)) + ": thread " +
          index_text(block.threads[c->write_thread].index) + " wrote it " +
          site_text(site_at(c->write_site)) + " and no fence.proxy.async followed")
             .c_str(),
         site);
  }
}

void check_async_end(Block& block) {
  if (block.async == nullptr) return;
  for (const auto& [address, barrier] : block.async->mbarriers)
    if (!barrier.copies.empty())
      fail(Fault::kPendingCopy, "the block ends while a bulk copy is under way");
  for (const auto& deliveries : block.async->deliveries)
    if (!deliveries.empty())
      fail(Fault::kPendingCopy, "the block ends while a wgmma product is under way");
}

}  // namespace simt
