// One kernel for each instruction of csrc/cuda/ptx.cuh, which does it to what a test gives and
// returns what came out. Compiled twice: for the SIMT machine, and, with ERNIE_PROBES, for a GPU.
#include <string>

#include "cuda/common.cuh"
#include "cuda/ptx.cuh"
#include "probes/run.cuh"

namespace {

using namespace ernie::cuda;

constexpr int kWide = 256;  // threads, of those that work alone

// What the code that runs was compiled for, and whether that has sm_90a's instructions.
__global__ void architecture(const uint32_t*, uint32_t* out) {
#if defined(__CUDA_ARCH__)
  out[0] = __CUDA_ARCH__ / 10;
#else
  out[0] = 90;
#endif
#if defined(ERNIE_PTX_SM90A)
  out[1] = 1;
#else
  out[1] = 0;
#endif
}

// ---------------------------------------------------------------------------------- arithmetic
//
// Thread t takes in[t], in[kWide + t], ... and gives out[t], out[kWide + t], ...

struct Columns {
  const uint32_t* in;
  uint32_t* out;
  __device__ uint32_t operator[](int i) const { return in[i * kWide + threadIdx.x]; }
  __device__ float real(int i) const { return __uint_as_float((*this)[i]); }
  __device__ void put(int i, uint32_t word) const { out[i * kWide + threadIdx.x] = word; }
};

__global__ void bits(const uint32_t* in, uint32_t* out) {
  const Columns c{in, out};
  c.put(0, prmt(c[0], c[1], c[2]));
  c.put(1, lop3<0x80>(c[0], c[1], c[2]));
  c.put(2, lop3<0x96>(c[0], c[1], c[2]));
  c.put(3, lop3<0xca>(c[0], c[1], c[2]));
  c.put(4, lop3<0x6a>(c[0], c[1], c[2]));
  c.put(5, lop3<0x0d>(c[0], c[1], c[2]));
}

__global__ void dot_products(const uint32_t* in, uint32_t* out) {
  const Columns c{in, out};
  c.put(0, static_cast<uint32_t>(dp4a_s32(c[0], c[1], static_cast<int32_t>(c[2]))));
  c.put(1, static_cast<uint32_t>(dp4a_u32_s32(c[0], c[1], static_cast<int32_t>(c[2]))));
  c.put(2, dp2a_lo_u32(c[0], c[1], c[2]));
  c.put(3, dp2a_hi_u32(c[0], c[1], c[2]));
}

__global__ void conversions(const uint32_t* in, uint32_t* out) {
  const Columns c{in, out};
  c.put(0, cvt_rn_bf16x2_f32(c.real(0), c.real(1)));
  c.put(1, cvt_rn_f16x2_f32(c.real(0), c.real(1)));
  c.put(2, __float_as_uint(cvt_f32_f16(static_cast<uint16_t>(c[2]))));
}

__global__ void bfloat16_fma(const uint32_t* in, uint32_t* out) {
  const Columns c{in, out};
  c.put(0, fma_rn_bf16x2(c[0], c[1], c[2]));
}

__global__ void conversions_e4m3(const uint32_t* in, uint32_t* out) {
#if defined(ERNIE_PTX_SM89)
  const Columns c{in, out};
  c.put(0, cvt_rn_satfinite_e4m3x2_f32(c.real(0), c.real(1)));
  c.put(1, cvt_rn_f16x2_e4m3x2(static_cast<uint16_t>(c[2])));
#endif
}

__global__ void exponential(const uint32_t* in, uint32_t* out) {
  const Columns c{in, out};
  c.put(0, __float_as_uint(ex2_approx(c.real(0))));
}

// ------------------------------------------------------------------------ ldmatrix and stmatrix

constexpr int kRows = 64, kRowWords = 4;  // of 16 bytes
constexpr int kTileWords = kRows * kRowWords;

// in: the tile, then the row of each lane. out: of each variant, four words of each lane.
__global__ void load_matrices(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint4, tile, [kRows]);
  auto* words = reinterpret_cast<uint32_t*>(tile);
  for (int i = threadIdx.x; i < kTileWords; i += 32) words[i] = in[i];
  __syncwarp();
  const void* row = tile + in[kTileWords + threadIdx.x];
  uint32_t* own = out + 4 * threadIdx.x;
  const auto keep = [&own](const auto& matrix) {
    int i = 0;
    for (const uint32_t word : matrix) own[i++] = word;
    own += 4 * 32;
  };
  uint32_t one[1], two[2], four[4];
  ldmatrix_x1(one, row);
  keep(one);
  ldmatrix_x1_trans(one, row);
  keep(one);
  ldmatrix_x2(two, row);
  keep(two);
  ldmatrix_x2_trans(two, row);
  keep(two);
  ldmatrix_x4(four, row);
  keep(four);
  ldmatrix_x4_trans(four, row);
  keep(four);
}

// in: four words of each lane, then the row of each lane. out: the tile, zero where nothing is.
template <bool kTransposed>
__global__ void store_matrices(const uint32_t* in, uint32_t* out) {
#if defined(ERNIE_PTX_SM90)
  ERNIE_SHARED(uint4, tile, [kRows]);
  auto* words = reinterpret_cast<uint32_t*>(tile);
  for (int i = threadIdx.x; i < kTileWords; i += 32) words[i] = 0;
  __syncwarp();
  uint32_t four[4];
  for (int i = 0; i < 4; ++i) four[i] = in[4 * threadIdx.x + i];
  void* row = tile + in[4 * 32 + threadIdx.x];
  if (kTransposed)
    stmatrix_x4_trans(row, four);
  else
    stmatrix_x4(row, four);
  __syncwarp();
  for (int i = threadIdx.x; i < kTileWords; i += 32) out[i] = words[i];
#endif
}

// ------------------------------------------------------------------------------------ mma.sync
//
// in: ten words of each lane, which are its registers of a, b and d. out: four, of d.

template <class Sum, class Product>
__device__ __forceinline__ void multiply(const uint32_t* in, uint32_t* out, Product product) {
  const uint32_t* own = in + 10 * threadIdx.x;
  const uint32_t a[4] = {own[0], own[1], own[2], own[3]};
  Sum d[4];
  for (int i = 0; i < 4; ++i) memcpy(&d[i], &own[6 + i], 4);
  product(d, a, own[4], own[5]);
  for (int i = 0; i < 4; ++i) memcpy(&out[4 * threadIdx.x + i], &d[i], 4);
}

#define MMA_PROBE(instruction, Sum)                                                           \
  __global__ void probe_##instruction(const uint32_t* in, uint32_t* out) {                    \
    multiply<Sum>(in, out, [](Sum(&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
      instruction(d, a, b0, b1);                                                              \
    });                                                                                       \
  }
MMA_PROBE(mma_m16n8k16_bf16, float)
MMA_PROBE(mma_m16n8k16_f16, float)
MMA_PROBE(mma_m16n8k32_s8, int32_t)
MMA_PROBE(mma_m16n8k32_u8_s8, int32_t)
MMA_PROBE(mma_m16n8k32_s8_u8, int32_t)
__global__ void probe_mma_m16n8k32_e4m3(const uint32_t* in, uint32_t* out) {
#if defined(ERNIE_PTX_SM89)
  multiply<float>(in, out, [](float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k32_e4m3(d, a, b0, b1);
  });
#endif
}

// ------------------------------------------------------------------------------------ cp.async

// Thread t copies four words in one, two or four pieces, the last of them in part (in[512 + t], of
// 0 to the piece's size); then what it has waited for is read by its neighbour.
template <int kSize>
__global__ void copies(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint4, tile, [128]);
  auto* words = reinterpret_cast<uint32_t*>(tile);
  constexpr int kWords = kSize / 4;
  for (int i = 0; i < 4; i += kWords) {
    const uint32_t at = 4 * threadIdx.x + i;
    const uint32_t bytes = i + kWords == 4 ? in[512 + threadIdx.x] : kSize;
    if (kSize == 4)
      cp_async_4(words + at, in + at, bytes);
    else if (kSize == 8)
      cp_async_8(words + at, in + at, bytes);
    else
      cp_async_16(words + at, in + at, bytes);
    cp_async_commit_group();
  }
  cp_async_commit_group();
  cp_async_wait_group<1>();  // all but the last, which is empty
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[4 * (threadIdx.x ^ 1) + i] = words[4 * (threadIdx.x ^ 1) + i];
}

__global__ void loads(const uint32_t* in, uint32_t* out) {
  const uint4 four = ld_global_nc_l1_no_allocate_16(in + 4 * (threadIdx.x ^ 1));
  uint32_t* own = out + 4 * threadIdx.x;
  own[0] = four.x;
  own[1] = four.y;
  own[2] = four.z;
  own[3] = four.w;
}

// -------------------------------------------------------------------------------------- barriers

// Warp 0 writes for warp 1 through barrier 1, and warp 1 answers through barrier 2.
__global__ void named_barriers(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint32_t, tile, [64]);
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    tile[lane] = in[lane];
    barrier_arrive(1, 64);
    barrier_sync(2, 64);
    out[lane] = tile[63 - lane];
  } else {
    barrier_sync(1, 64);
    tile[32 + lane] = tile[31 - lane] + 1;
    barrier_arrive(2, 64);
  }
}

// 64 threads rotate a tile three times; each phase is one round of arrivals.
__global__ void mbarrier_phases(const uint32_t* in, uint32_t* out) {
  ERNIE_SHARED(uint64_t, barrier, [1]);
  ERNIE_SHARED(uint32_t, tile, [4 * 64]);
  if (threadIdx.x == 0) mbarrier_init(barrier, 64);
  __syncthreads();
  uint32_t word = in[threadIdx.x];
  for (uint32_t phase = 0; phase < 4; ++phase) {
    tile[64 * phase + threadIdx.x] = word;
    mbarrier_arrive(barrier);
    while (!mbarrier_test_wait_parity(barrier, phase & 1)) {
    }
    word = tile[64 * phase + (threadIdx.x + 1) % 64];
  }
  out[threadIdx.x] = word;
}

// What one thread sees of the phases of a barrier of two arrivals.
__global__ void mbarrier_parity(const uint32_t*, uint32_t* out) {
  ERNIE_SHARED(uint64_t, barrier, [1]);
  mbarrier_init(barrier, 2);
  int at = 0;
  for (int arrivals = 0; arrivals <= 4; ++arrivals) {
    out[at++] = mbarrier_test_wait_parity(barrier, 0);
    out[at++] = mbarrier_test_wait_parity(barrier, 1);
    mbarrier_arrive(barrier);
  }
  mbarrier_inval(barrier);
  mbarrier_init(barrier, 1);
  out[at++] = mbarrier_test_wait_parity(barrier, 0);
}

// ------------------------------------------------------------------------------------ bulk copies

constexpr int kStages = 2, kTiles = 6, kTile = 256;  // words

// Thread 0 copies tiles into a ring, in two parts each; warps 1 and 2 add them up.
__global__ void bulk_copies(const uint32_t* in, uint32_t* out) {
#if defined(ERNIE_PTX_SM90)
  ERNIE_SHARED(uint64_t, full, [kStages]);
  ERNIE_SHARED(uint64_t, empty, [kStages]);
  ERNIE_SHARED(uint4, ring, [kStages * kTile / 4]);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 64);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTiles; ++i) {
      const int s = i % kStages;
      const uint32_t parity = static_cast<uint32_t>(i / kStages) & 1;
      while (!mbarrier_try_wait_parity(&empty[s], parity ^ 1)) {
      }
      mbarrier_expect_tx(&full[s], 64);
      cp_async_bulk(ring + s * kTile / 4, in + i * kTile, 64, &full[s]);
      mbarrier_arrive_expect_tx(&full[s], 4 * kTile - 64);
      cp_async_bulk(ring + s * kTile / 4 + 4, in + i * kTile + 16, 4 * kTile - 64, &full[s]);
    }
  } else if (threadIdx.x >= 32) {
    const unsigned own = threadIdx.x - 32;
    uint32_t sums[4] = {};
    for (uint32_t i = 0; i < kTiles; ++i) {
      const uint32_t s = i % kStages;
      while (!mbarrier_try_wait_parity(&full[s], i / kStages & 1)) {
      }
      const uint4 four = ring[s * kTile / 4 + own];
      mbarrier_arrive(&empty[s]);
      sums[0] = 3 * sums[0] + four.x;
      sums[1] = 3 * sums[1] + four.y;
      sums[2] = 3 * sums[2] + four.z;
      sums[3] = 3 * sums[3] + four.w;
    }
    for (int i = 0; i < 4; ++i) out[4 * own + i] = sums[i];
  }
#endif
}

// --------------------------------------------------------------------------------------- wgmma
//
// in: a header, the registers of d, 128 x kN / 2, those of a, kSteps x 128 x 4, and an image of the
// shared memory. out: the registers of d after kSteps products, of which the first begins with d as
// given if the header says so.

constexpr int kSteps = 2, kImageWords = 40 << 8;
constexpr size_t kImageBytes = 4 * kImageWords, kAlignment = 1024;

struct Header {
  uint32_t a_start, a_leading, a_stride, a_step;  // bytes; a step: from one product to the next
  uint32_t b_start, b_leading, b_stride, b_step;
  uint32_t swizzle, accumulate;
};

template <class Sum, int kN, bool kRegisters, class Product>
__device__ __forceinline__ void multiply_warpgroup(const uint32_t* in, uint32_t* out,
                                                   Product product) {
#if defined(ERNIE_PTX_SM90A)
  ERNIE_DYNAMIC_SHARED(char, smem);
  Header h;
  memcpy(&h, in, sizeof h);
  const uint32_t* given = in + sizeof h / 4 + kN / 2 * threadIdx.x;
  const uint32_t* a_given = in + sizeof h / 4 + kN / 2 * 128;
  const uint32_t* image = a_given + kSteps * 4 * 128;
  char* const base = smem + (-shared_address(smem) & (kAlignment - 1));
  for (int i = threadIdx.x; i < kImageWords; i += 128)
    reinterpret_cast<uint32_t*>(base)[i] = image[i];
  fence_proxy_async();
  __syncthreads();

  Sum d[kN / 2];
  for (int i = 0; i < kN / 2; ++i) memcpy(&d[i], &given[i], 4);
  const auto swizzle = static_cast<Swizzle>(h.swizzle);
  for (uint32_t step = 0; step < kSteps; ++step) {
    const uint64_t b = wgmma_descriptor(shared_address(base) + h.b_start + step * h.b_step,
                                        h.b_leading, h.b_stride, swizzle);
    const bool accumulate = step > 0 || h.accumulate != 0;
    wgmma_fence();
    if constexpr (kRegisters) {
      uint32_t a[4];
      for (int i = 0; i < 4; ++i) a[i] = a_given[4 * (128 * step + threadIdx.x) + i];
      product(d, a, b, accumulate);
      wgmma_commit_group();
      wgmma_wait_group<0>();
    } else {
      product(d,
              wgmma_descriptor(shared_address(base) + h.a_start + step * h.a_step, h.a_leading,
                               h.a_stride, swizzle),
              b, accumulate);
      wgmma_commit_group();
      wgmma_wait_group<1>();
    }
  }
  wgmma_wait_group<0>();
  for (int i = 0; i < kN / 2; ++i) memcpy(&out[kN / 2 * threadIdx.x + i], &d[i], 4);
#endif
}

#if defined(ERNIE_PTX_SM90A)
#define WGMMA_CALL(...) __VA_ARGS__(d, a, b, accumulate)
#else
#define WGMMA_CALL(...)
#endif
#define WGMMA_PROBE(name, Sum, ...)                                                            \
  template <int kN, bool kRegisters>                                                           \
  __global__ void __launch_bounds__(128) name(const uint32_t* in, uint32_t* out) {             \
    multiply_warpgroup<Sum, kN, kRegisters>(                                                   \
        in, out,                                                                               \
        [](auto& d, const auto& a, uint64_t b, bool accumulate) { WGMMA_CALL(__VA_ARGS__); }); \
  }
WGMMA_PROBE(wgmma_bf16, float, wgmma_m64k16_bf16<kN>)
WGMMA_PROBE(wgmma_bf16_transposed, float, wgmma_m64k16_bf16<kN, true>)
WGMMA_PROBE(wgmma_s8, int32_t, wgmma_m64k32_s8<kN>)
WGMMA_PROBE(wgmma_u8_s8, int32_t, wgmma_m64k32_u8_s8<kN>)
WGMMA_PROBE(wgmma_e4m3, float, wgmma_m64k32_e4m3<kN>)

// ------------------------------------------------------------------------------------- the list

#define WGMMA_ROW(title, kernel, n)                                                             \
  {title " n" #n " shared", kernel<n, false>, 128, probes::kSm90a, kImageBytes + kAlignment}, { \
    title " n" #n " registers", kernel<n, true>, 128, probes::kSm90a, kImageBytes + kAlignment  \
  }
#define WGMMA_ROWS(title, kernel)                                                          \
  WGMMA_ROW(title, kernel, 8), WGMMA_ROW(title, kernel, 16), WGMMA_ROW(title, kernel, 32), \
      WGMMA_ROW(title, kernel, 64), WGMMA_ROW(title, kernel, 128), WGMMA_ROW(title, kernel, 256)

const probes::Probe kProbes[] = {
    {"architecture", architecture, 1},
    {"bits", bits, kWide},
    {"dot products", dot_products, kWide},
    {"conversions", conversions, kWide},
    {"bfloat16 fma", bfloat16_fma, kWide},
    {"conversions e4m3", conversions_e4m3, kWide, 89},
    {"ex2", exponential, kWide},
    {"ldmatrix", load_matrices, 32},
    {"stmatrix", store_matrices<false>, 32, 90},
    {"stmatrix trans", store_matrices<true>, 32, 90},
    {"mma bf16", probe_mma_m16n8k16_bf16, 32},
    {"mma f16", probe_mma_m16n8k16_f16, 32},
    {"mma s8", probe_mma_m16n8k32_s8, 32},
    {"mma u8 s8", probe_mma_m16n8k32_u8_s8, 32},
    {"mma s8 u8", probe_mma_m16n8k32_s8_u8, 32},
    {"mma e4m3", probe_mma_m16n8k32_e4m3, 32, 89},
    {"cp.async 4", copies<4>, 128},
    {"cp.async 8", copies<8>, 128},
    {"cp.async 16", copies<16>, 128},
    {"ld.global.nc", loads, 128},
    {"named barriers", named_barriers, 64},
    {"mbarrier phases", mbarrier_phases, 64},
    {"mbarrier parity", mbarrier_parity, 1},
    {"cp.async.bulk", bulk_copies, 96, 90},
    WGMMA_ROWS("wgmma bf16", wgmma_bf16),
    WGMMA_ROWS("wgmma bf16 transposed", wgmma_bf16_transposed),
    WGMMA_ROWS("wgmma s8", wgmma_s8),
    WGMMA_ROW("wgmma u8 s8", wgmma_u8_s8, 64),
    WGMMA_ROW("wgmma e4m3", wgmma_e4m3, 64),
};

std::string g_text;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs a probe. Returns a cudaError_t, -1 where no probe has the name, -2 where the code that the
// GPU runs lacks the instruction.
EXPORT int ernie_run_instruction(const char* name, uint32_t* in, size_t in_words, uint32_t* out,
                                 size_t out_words) {
  const probes::Probe* probe = probes::find(kProbes, name);
  if (probe == nullptr) return -1;
  uint32_t code[2] = {};
  cudaError_t error = probes::run(kProbes[0], {in, in_words}, {code, 2});
  if (error == cudaSuccess) {
    const bool has = probe->architecture == probes::kSm90a
                         ? code[1] != 0
                         : static_cast<int>(code[0]) >= probe->architecture;
    if (!has) return -2;
    error = probes::run(*probe, {in, in_words}, {out, out_words});
  }
  g_text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  return error;
}

EXPORT const char* ernie_instruction_text() { return g_text.c_str(); }
