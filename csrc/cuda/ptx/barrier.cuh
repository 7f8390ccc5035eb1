// Barriers among some of a block's warps, barriers in shared memory (mbarrier), and the bulk copies
// that report to them.
//
// An mbarrier is 8 aligned bytes of shared memory. A phase ends when as many arrivals have come as
// mbarrier_init said, and as many bytes as were expected; then the next begins. Phases count from
// 0, and a wait names the parity of the phase that it waits for.
#pragma once

#include <cstdint>

#include "cuda/ptx/architecture.cuh"
#include "cuda/ptx/copy.cuh"

namespace ernie::cuda {

// ------------------------------------------------------------------------------ named barriers

// Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads, a multiple of 32: _sync waits
// for all of them, _arrive does not wait.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ------------------------------------------------------------------------------------ mbarrier

// By one thread; a barrier of the block must follow before others use it, and before bulk copies
// do, fence_mbarrier_init too.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// Makes its memory free for other use.
__device__ __forceinline__ void mbarrier_inval(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared.b64 state, [%0];\n"
      "}" ::"r"(shared_address(barrier))
      : "memory");
}

// Whether the phase of that parity has ended; does not wait.
__device__ __forceinline__ bool mbarrier_test_wait_parity(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

#if defined(ERNIE_PTX_SM90)
// The same, but waits for a while first. May be false nonetheless: call it until it is true.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}

// The current phase ends no earlier than that many more bytes have come.
__device__ __forceinline__ void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// ------------------------------------------------------------------------------------- fences

// After mbarrier_init, before bulk copies report to the barrier.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Between what threads write into shared memory and what bulk copies and wgmma read there; by the
// writing threads, before the barrier that the reader waits at.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --------------------------------------------------------------------------------- bulk copies

// Copies `bytes`, a multiple of 16; both addresses are 16-byte aligned. One thread starts it. The
// barrier's phase counts the bytes as they come.
__device__ __forceinline__ void cp_async_bulk(void* shared, const void* global, uint32_t bytes,
                                              uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
#endif

}  // namespace ernie::cuda
