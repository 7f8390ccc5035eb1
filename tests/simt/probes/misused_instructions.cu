// Instructions used against their rules, one fault a kernel, and the same without it: what the
// machine must report, and what it must let pass (tests/simt/test_misused_instructions.py). On the
// machine alone.
#include <string>

#include "cuda/common.cuh"
#include "cuda/ptx.cuh"
#include "probes/run.cuh"

namespace {

using namespace ernie::cuda;

// --------------------------------------------------------------------------------------- wgmma

enum class Wgmma {
  kRight,
  kNoFence,
  kNoFenceAfterWait,
  kNoProxyFence,
  kNoWait,
  kEarlyRead,
  kThreeWarps,
  kOperandsDiffer,
  kOverwrittenEarly,
  kReleasedByOne,  // which is right: the wait is for the whole warpgroup's reads
  kReleasedEarly,
  kMisaligned,
  kBaseOffset,
  kBeyond,
};

// One product of ones: 64 x 8, over 16 of k. a and b without swizzle.
template <Wgmma kFault>
__global__ void product(const uint32_t*, uint32_t* out) {
  ERNIE_DYNAMIC_SHARED(char, smem);
  constexpr uint32_t kABytes = 64 * 32, kBBytes = 8 * 32;
  const unsigned warp = threadIdx.x / 32;
  for (unsigned i = threadIdx.x; i < (kABytes + kBBytes) / 4; i += blockDim.x)
    reinterpret_cast<uint32_t*>(smem)[i] = 0x3f803f80u;
  ERNIE_SHARED(uint64_t, done, [1]);
  if (kFault == Wgmma::kReleasedByOne && threadIdx.x == 0) mbarrier_init(done, 1);
  if (kFault != Wgmma::kNoProxyFence) fence_proxy_async();
  __syncthreads();
  if (warp == 4) {  // beside the warpgroup
    if (kFault == Wgmma::kReleasedEarly) barrier_sync(1, 160);
    if (kFault == Wgmma::kReleasedByOne)
      while (!mbarrier_try_wait_parity(done, 0)) {
      }
    if (kFault == Wgmma::kOverwrittenEarly || kFault == Wgmma::kReleasedEarly ||
        kFault == Wgmma::kReleasedByOne)
      reinterpret_cast<uint32_t*>(smem)[threadIdx.x] = 0;
    return;
  }
  const uint32_t a = shared_address(smem), b = a + kABytes;
  float d[4] = {1.f, 1.f, 1.f, 1.f};
  if (kFault == Wgmma::kThreeWarps && warp == 3) return;
  uint64_t a_descriptor = wgmma_descriptor(a, 128, 256, Swizzle::kNone);
  const uint64_t b_descriptor = wgmma_descriptor(b, 128, 256, Swizzle::kNone);
  if (kFault == Wgmma::kOperandsDiffer && warp == 1)
    a_descriptor = wgmma_descriptor(a, 128, 128, Swizzle::kNone);
  if (kFault == Wgmma::kMisaligned)
    a_descriptor = wgmma_descriptor(a + 128, 0, 1024, Swizzle::k128);
  if (kFault == Wgmma::kBaseOffset) a_descriptor |= uint64_t{1} << 49;
  if (kFault == Wgmma::kBeyond) a_descriptor = wgmma_descriptor(a, 128, 512, Swizzle::kNone);
  if (kFault != Wgmma::kNoFence) wgmma_fence();
  wgmma_m64k16_bf16<8>(d, a_descriptor, b_descriptor, true);
  wgmma_commit_group();
  if (kFault == Wgmma::kReleasedEarly) barrier_arrive(1, 160);
  if (kFault == Wgmma::kEarlyRead) out[128 + threadIdx.x] = __float_as_uint(d[0]);
  if (kFault != Wgmma::kNoWait) wgmma_wait_group<0>();
  if (kFault == Wgmma::kReleasedByOne && threadIdx.x == 37) mbarrier_arrive(done);
  if (kFault == Wgmma::kNoFenceAfterWait) {
    d[0] = 0.f;
    wgmma_m64k16_bf16<8>(d, a_descriptor, b_descriptor, true);
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
  out[threadIdx.x] = __float_as_uint(d[0]);
}

// -------------------------------------------------------------------------- mbarriers and copies

enum class Copy {
  kRight,
  kNoInit,
  kNoInitFence,
  kNoBarrierAfterInit,
  kNoWait,
  kWrongParity,
  kExpectsLess,
  kExpectsMore,
  kArrivesTwice,
  kOddSize,
  kMisaligned,
  kBeyond,
  kNobodyWaits,
  kRefilledEarly,
};

// Thread 0 fills a tile by a bulk copy, warp 1 reads it; then the same again.
template <Copy kFault>
__global__ void copy_twice(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint64_t, full, [1]);
  ERNIE_SHARED(uint64_t, empty, [1]);
  ERNIE_SHARED(uint4, tile, [8]);
  if (threadIdx.x == 0 && kFault != Copy::kNoInit) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, 32);
    if (kFault != Copy::kNoInitFence) fence_mbarrier_init();
  }
  if (kFault != Copy::kNoBarrierAfterInit) __syncthreads();
  for (uint32_t i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) {
      if (kFault != Copy::kRefilledEarly)
        while (!mbarrier_try_wait_parity(empty, i ^ 1)) {
        }
      uint32_t bytes = 128;
      if (kFault == Copy::kExpectsLess) bytes = 64;
      if (kFault == Copy::kExpectsMore) bytes = 144;
      mbarrier_arrive_expect_tx(full, bytes);
      if (kFault == Copy::kArrivesTwice) mbarrier_arrive(full);
      if (kFault == Copy::kExpectsLess) {
        cp_async_bulk(tile, in, 64, full);
        cp_async_bulk(tile + 4, in + 16, 64, full);
      } else if (kFault == Copy::kOddSize) {
        cp_async_bulk(tile, in, 120, full);
      } else if (kFault == Copy::kMisaligned) {
        cp_async_bulk(tile, in + 1, 128, full);
      } else if (kFault == Copy::kBeyond) {
        cp_async_bulk(tile + 1, in, 128, full);
      } else {
        cp_async_bulk(tile, in, 128, full);
      }
    } else if (threadIdx.x >= 32 && kFault != Copy::kNobodyWaits) {
      const uint32_t parity = kFault == Copy::kWrongParity ? i ^ 1 : i;
      if (kFault != Copy::kNoWait)
        while (!mbarrier_try_wait_parity(full, parity)) {
        }
      out[threadIdx.x - 32] = reinterpret_cast<const uint32_t*>(tile)[threadIdx.x - 32];
      mbarrier_arrive(empty);
    }
    if (kFault == Copy::kNobodyWaits) return;
  }
}

// ---------------------------------------------------------------------------------- warps

__global__ void barrier_in_half_a_warp(const uint32_t*, uint32_t*) {
  if (threadIdx.x % 32 < 16) barrier_sync(1, 64);
}

template <bool kBarrier>
__global__ void store_and_load(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint4, tile, [32]);
  const uint32_t four[4] = {in[threadIdx.x], 1, 2, 3};
  stmatrix_x4(tile + threadIdx.x, four);
  if (kBarrier) __syncwarp();
  uint32_t one[1];
  ldmatrix_x1(one, tile + (threadIdx.x + 8) % 32);  // rows that other lanes have stored
  out[threadIdx.x] = one[0];
}

// The last four bytes are beyond the tile.
__global__ void small_copy_beyond(const uint32_t* in, uint32_t*) {
  ERNIE_SHARED(uint32_t, tile, [8]);
  cp_async_4(tile + threadIdx.x, in);
}
__global__ void small_copy_of_too_much(const uint32_t* in, uint32_t*) {
  ERNIE_SHARED(uint2, tile, [1]);
  cp_async_8(tile, in, 9);
}

constexpr size_t kProductBytes = 64 * 32 + 8 * 32;
#define PRODUCT(title, fault) {title, product<Wgmma::fault>, 160, 0, kProductBytes}
#define COPY(title, fault) {title, copy_twice<Copy::fault>, 64}
const probes::Probe kProbes[] = {
    PRODUCT("wgmma", kRight),
    PRODUCT("wgmma operand released by one", kReleasedByOne),
    PRODUCT("wgmma without fence", kNoFence),
    PRODUCT("wgmma without fence after wait", kNoFenceAfterWait),
    PRODUCT("wgmma without proxy fence", kNoProxyFence),
    PRODUCT("wgmma without wait", kNoWait),
    PRODUCT("wgmma read early", kEarlyRead),
    PRODUCT("wgmma by three warps", kThreeWarps),
    PRODUCT("wgmma operands differ", kOperandsDiffer),
    PRODUCT("wgmma operand overwritten", kOverwrittenEarly),
    PRODUCT("wgmma operand released early", kReleasedEarly),
    PRODUCT("wgmma pattern misaligned", kMisaligned),
    PRODUCT("wgmma base offset", kBaseOffset),
    PRODUCT("wgmma operand beyond", kBeyond),
    {"wgmma by half a warpgroup", product<Wgmma::kRight>, 64, 0, kProductBytes},
    COPY("bulk copy", kRight),
    COPY("mbarrier without init", kNoInit),
    COPY("bulk copy without init fence", kNoInitFence),
    COPY("mbarrier without barrier after init", kNoBarrierAfterInit),
    COPY("bulk copy without wait", kNoWait),
    COPY("mbarrier wrong parity", kWrongParity),
    COPY("bulk copy expects less", kExpectsLess),
    COPY("bulk copy expects more", kExpectsMore),
    COPY("mbarrier arrives twice", kArrivesTwice),
    COPY("bulk copy odd size", kOddSize),
    COPY("bulk copy misaligned", kMisaligned),
    COPY("bulk copy beyond", kBeyond),
    COPY("bulk copy nobody waits", kNobodyWaits),
    COPY("bulk copy refilled early", kRefilledEarly),
    {"barrier in half a warp", barrier_in_half_a_warp, 64},
    {"stmatrix", store_and_load<true>, 32},
    {"stmatrix without barrier", store_and_load<false>, 32},
    {"cp.async 4 beyond", small_copy_beyond, 32},
    {"cp.async 8 of too much", small_copy_of_too_much, 1},
};

std::string g_text;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// As ernie_run_instruction (instructions.cu).
EXPORT int ernie_run_misuse(const char* name, uint32_t* in, size_t in_words, uint32_t* out,
                            size_t out_words) {
  const probes::Probe* probe = probes::find(kProbes, name);
  if (probe == nullptr) return -1;
  const cudaError_t error = probes::run(*probe, {in, in_words}, {out, out_words});
  g_text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  return error;
}

EXPORT const char* ernie_misuse_text() { return g_text.c_str(); }
