// Small kernels with one known fault each, and the same without it: what the machine must report,
// and what it must let pass (tests/simt/test_machine.py).
#include <string>

#include "cuda/common.cuh"
#include "cuda/ptx.cuh"

namespace {

using namespace ernie::cuda;

constexpr int kThreads = 128;
constexpr int kWords = 256;  // of `in` and of `out`

// ------------------------------------------------------------------------------ block barriers

template <bool kBarrier>
__global__ void reverse(const float* in, float* out) {
  ERNIE_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The second barrier keeps a fast thread from overwriting what a slow one still reads.
template <bool kBarrier>
__global__ void reuse(const float* in, float* out) {
  ERNIE_SHARED(float, tile, [kThreads]);
  float sum = 0.f;
  for (int i = 0; i < 2; ++i) {
    tile[threadIdx.x] = in[i * kThreads + threadIdx.x];
    __syncthreads();
    sum += tile[kThreads - 1 - threadIdx.x];
    if (kBarrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

__global__ void divergent_barrier(const float*, float* out) {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 0.f;
}

__global__ void barrier_after_return(const float*, float* out) {
  if (threadIdx.x >= 100) return;  // threads that are gone are not waited for
  __syncthreads();
  out[threadIdx.x] = 0.f;
}

__global__ void votes(const float*, float* out) {
  const int low = threadIdx.x < 5;
  const int count = __syncthreads_count(low), any = __syncthreads_or(low);
  const int all = __syncthreads_and(low);
  if (threadIdx.x == 0) out[0] = static_cast<float>(count * 100 + any * 10 + all);
}

// ------------------------------------------------------------------------------ warps

__global__ void shuffle_without_lane(const float* in, float* out) {
  float v = in[threadIdx.x];
  if (threadIdx.x % 32 != 7) v += __shfl_xor_sync(0xffffffffu, v, 1);
  __syncthreads();
  out[threadIdx.x] = v;
}

__global__ void shuffle_masks_differ(const float* in, float* out) {
  float v = in[threadIdx.x];
  v += __shfl_xor_sync(threadIdx.x % 2 == 0 ? 0xffffffffu : 0x7fffffffu, v, 1);
  out[threadIdx.x] = v;
}

__global__ void shuffle_in_halves(const float* in, float* out) {
  float v = in[threadIdx.x];
  v += __shfl_xor_sync(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u, v, 1);
  out[threadIdx.x] = v;
}

// Warp 0 waits for the block, warp 1 for its lane 8, and that for warp 0.
__global__ void wait_in_a_circle(const float*, float* out) {
  if (threadIdx.x < 32 || threadIdx.x == 40)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = 0.f;
}

__global__ void mma_in_half_a_warp(const float*, float* out) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (threadIdx.x % 32 >= 16) return;
  mma_m16n8k16_bf16(d, a, 0, 0);
  out[threadIdx.x] = d[0];
}

// Shuffles order no memory; __syncwarp does.
template <bool kBarrier>
__global__ void warp_exchange(const float* in, float* out) {
  ERNIE_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBarrier)
    __syncwarp();
  else
    __shfl_sync(0xffffffffu, 0, 0);
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// Half a warp synchronises, and then reads what the other half wrote.
template <bool kOwnHalf>
__global__ void half_warp_exchange(const float* in, float* out) {
  ERNIE_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = in[threadIdx.x];
  __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[threadIdx.x] = tile[threadIdx.x ^ (kOwnHalf ? 1 : 16)];
}

// ------------------------------------------------------------------------------ memory

__global__ void read_beyond(const float* in, float* out) { out[threadIdx.x] = in[kWords]; }
__global__ void write_beyond(const float*, float* out) {
  out[threadIdx.x == 5 ? kWords : threadIdx.x] = 0.f;
}
__global__ void write_before(const float*, float* out) { out[-1] = 0.f; }
__global__ void shared_beyond(const float* in, float* out) {
  ERNIE_SHARED(float, small, [8]);
  ERNIE_SHARED(float, other, [8]);
  other[0] = 0.f;
  float* volatile hidden = small;  // or the compiler sees the end itself
  hidden[static_cast<int>(in[8])] = 0.f;
  if (threadIdx.x == 0) out[0] = small[0] + other[0];
}
__global__ void dynamic_beyond(const float* in, float*) {
  ERNIE_DYNAMIC_SHARED(float, smem);
  smem[threadIdx.x] = in[threadIdx.x];
}
__global__ void null_pointer(const float*, float* out) {
  const float* volatile nothing = nullptr;
  out[0] = nothing[threadIdx.x];
}
__global__ void host_memory(const float*, float* out, const float* host) { out[0] = host[0]; }
__global__ void local_beyond(const float* in, float* out) {
  float local[4] = {};
  local[static_cast<int>(in[4])] = 1.f;  // element 4
  out[threadIdx.x] = local[static_cast<int>(in[3])];
}
__global__ void misaligned_vector(const float* in, float* out) {
  *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(in + 1);
}
__global__ void unwritten_global(const float*, float* out) { out[0] = out[1]; }
__global__ void unwritten_shared(const float*, float* out) {
  ERNIE_SHARED(float, tile, [kThreads]);
  if (threadIdx.x < 100) tile[threadIdx.x] = 1.f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void halves_of_words(const float* in, float* out) {
  auto* halves = reinterpret_cast<uint16_t*>(out);
  halves[threadIdx.x] = static_cast<uint16_t>(in[threadIdx.x]);
}

// ------------------------------------------------------------------------------ races

__global__ void global_race(const float*, float* out) { out[threadIdx.x / 2] = 1.f; }
__global__ void race_between_blocks(const float*, float* out) {
  if (threadIdx.x == 0) out[0] = static_cast<float>(blockIdx.x);
}
__global__ void read_what_another_block_writes(const float*, float* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = 1.f;
  __syncthreads();
  if (threadIdx.x == 1) out[100 + blockIdx.x] = out[0];
}
__global__ void atomics(const float*, float* out) {
  ERNIE_SHARED(unsigned, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1u);
  __syncthreads();
  if (threadIdx.x == 0) out[0] = static_cast<float>(count[0]);
}
__global__ void atomic_beside_plain(const float*, float* out) {
  ERNIE_SHARED(unsigned, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  if (threadIdx.x == 5) count[0] += 1;
  atomicAdd(&count[0], 1u);
  __syncthreads();
  out[threadIdx.x] = static_cast<float>(count[0]);
}

// ------------------------------------------------------------------------------ copies

template <bool kWait, bool kBarrier>
__global__ void copy_async(const float* in, float* out) {
  ERNIE_SHARED(float4, tile, [kThreads / 4]);
  if (threadIdx.x < kThreads / 4) cp_async_16(tile + threadIdx.x, in + 4 * threadIdx.x);
  cp_async_commit_group();
  if (kWait)
    cp_async_wait_group<0>();
  else
    cp_async_wait_group<1>();
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = reinterpret_cast<const float*>(tile)[threadIdx.x];
}

__global__ void copy_misaligned(const float* in, float*) {
  ERNIE_SHARED(float4, tile, [1]);
  cp_async_16(tile, in + 1);
}

// ------------------------------------------------------------------------------ running on

__global__ void never_ends(const float*, float* out) {
  volatile float* flag = out;
  if (threadIdx.x == 0) flag[0] = 0.f;
  while (threadIdx.x == 0 && flag[0] == 0.f) {
  }
}

struct Buffers {
  float *in, *out;
};

// `dynamic`: bytes of dynamic shared memory.
template <class Kernel, class... More>
cudaError_t run(Kernel kernel, unsigned blocks, size_t dynamic, const Buffers& b, More... more) {
  simt::launch(kernel, dim3(blocks), dim3(kThreads), dynamic, nullptr,
               static_cast<const float*>(b.in), b.out, more...);
  return cudaGetLastError();
}

cudaError_t run_named(const std::string& name, const Buffers& b, bool* found) {
#define PROBE(title, kernel, blocks, dynamic) \
  if (name == title) return run(kernel, blocks, dynamic, b)
  PROBE("barrier", reverse<true>, 1, 0);
  PROBE("barrier missing", reverse<false>, 1, 0);
  PROBE("reuse", reuse<true>, 1, 0);
  PROBE("reuse without barrier", reuse<false>, 1, 0);
  PROBE("divergent barrier", divergent_barrier, 1, 0);
  PROBE("barrier after return", barrier_after_return, 1, 0);
  PROBE("votes", votes, 1, 0);
  PROBE("shuffle without lane", shuffle_without_lane, 1, 0);
  PROBE("shuffle masks differ", shuffle_masks_differ, 1, 0);
  PROBE("shuffle in halves", shuffle_in_halves, 1, 0);
  PROBE("wait in a circle", wait_in_a_circle, 1, 0);
  PROBE("mma in half a warp", mma_in_half_a_warp, 1, 0);
  PROBE("warp exchange", warp_exchange<true>, 1, 0);
  PROBE("warp exchange by shuffle", warp_exchange<false>, 1, 0);
  PROBE("half warp exchange", half_warp_exchange<true>, 1, 0);
  PROBE("half warp exchange across", half_warp_exchange<false>, 1, 0);
  PROBE("read beyond", read_beyond, 1, 0);
  PROBE("write beyond", write_beyond, 1, 0);
  PROBE("write before", write_before, 1, 0);
  PROBE("shared beyond", shared_beyond, 1, 0);
  PROBE("dynamic beyond", dynamic_beyond, 1, 500);
  PROBE("null pointer", null_pointer, 1, 0);
  PROBE("local beyond", local_beyond, 1, 0);
  PROBE("misaligned vector", misaligned_vector, 1, 0);
  PROBE("unwritten global", unwritten_global, 1, 0);
  PROBE("unwritten shared", unwritten_shared, 1, 0);
  PROBE("halves of words", halves_of_words, 1, 0);
  PROBE("global race", global_race, 1, 0);
  PROBE("race between blocks", race_between_blocks, 2, 0);
  PROBE("read what another block writes", read_what_another_block_writes, 2, 0);
  PROBE("atomics", atomics, 1, 0);
  PROBE("atomic beside plain", atomic_beside_plain, 1, 0);
  PROBE("copy", (copy_async<true, true>), 1, 0);
  PROBE("copy without wait", (copy_async<false, true>), 1, 0);
  PROBE("copy without barrier", (copy_async<true, false>), 1, 0);
  PROBE("copy misaligned", copy_misaligned, 1, 0);
  PROBE("never ends", never_ends, 1, 0);
  PROBE("too much shared memory", dynamic_beyond, 1, 49 << 10);
  if (name == "host memory") {
    float* const heap = new float[1]{1.f};
    const cudaError_t error = run(host_memory, 1, 0, b, static_cast<const float*>(heap));
    delete[] heap;
    return error;
  }
  *found = false;
  return cudaSuccess;
}

std::string g_text;

}  // namespace

// `in` holds 0, 1, 2, ...; the first words of `out` are returned as text where all went well.
extern "C" __attribute__((visibility("default"))) int ernie_simt_run_probe(const char* name) {
  Buffers b;
  float values[kWords];
  for (int i = 0; i < kWords; ++i) values[i] = static_cast<float>(i);
  cudaMalloc(reinterpret_cast<void**>(&b.in), sizeof values);
  cudaMalloc(reinterpret_cast<void**>(&b.out), sizeof values);
  cudaMemcpy(b.in, values, sizeof values, cudaMemcpyHostToDevice);
  bool found = true;
  const cudaError_t error = run_named(name, b, &found);
  g_text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  if (error == cudaSuccess) {
    cudaMemcpy(values, b.out, sizeof values, cudaMemcpyDeviceToHost);
    for (int i = 0; i < 4; ++i) g_text += std::to_string(values[i]) + " ";
  }
  cudaFree(b.in);
  cudaFree(b.out);
  return found ? error : -1;
}

extern "C" __attribute__((visibility("default"))) const char* ernie_simt_probe_text() {
  return g_text.c_str();
}
