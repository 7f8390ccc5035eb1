// machine/ptx_barrier.cpp
#pragma once

#include <cstdint>

namespace ernie::cuda {

void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

void mbarrier_init(uint64_t* barrier, uint32_t arrivals);
void mbarrier_inval(uint64_t* barrier);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
bool mbarrier_test_wait_parity(uint64_t* barrier, uint32_t parity);
bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity);

void fence_mbarrier_init();
void fence_proxy_async();

void cp_async_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);

}  // namespace ernie::cuda
