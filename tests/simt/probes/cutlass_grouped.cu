// In place of CUTLASS's grouped products, which the machine cannot run: the same from the same
// arrays.
#include "core/bf16.h"
#include "cuda/common.cuh"
#include "cuda/grouped_gemm/cutlass.h"

namespace ernie::cuda {
namespace {

constexpr int kThreads = 64;

// Block x is an expert, y takes rows; a thread owns columns.
__global__ void grouped_stand_in_kernel(const GroupedArrays p) {
  const int expert = static_cast<int>(blockIdx.x);
  const auto& [m, n, k] = p.sizes[expert];
  for (int row = static_cast<int>(blockIdx.y); row < m; row += static_cast<int>(gridDim.y)) {
    const bf16* x = static_cast<const bf16*>(p.x[expert]) + row * p.x_stride[expert];
    bf16* out = static_cast<bf16*>(p.out[expert]) + row * p.out_stride[expert];
    for (int column = static_cast<int>(threadIdx.x); column < n; column += kThreads) {
      const bf16* weight =
          static_cast<const bf16*>(p.weight[expert]) + column * p.weight_stride[expert];
      float sum = 0.f;
      for (int i = 0; i < k; ++i) sum += to_float(x[i]) * to_float(weight[i]);
      out[column] = to_bf16(sum);
    }
  }
}

struct alignas(64) Descriptor {
  uint32_t words[32];
};

// Each block writes the TMA descriptors of its x, weight and out: the machine sees where.
__global__ void grouped_descriptors_kernel(Descriptor* descriptors) {
  descriptors[blockIdx.x + gridDim.x * threadIdx.x] = {};
}

}  // namespace

void launch_grouped_sm80_128x128(const GroupedArrays& p, int sm_count, cudaStream_t stream) {
  launch(grouped_stand_in_kernel,
         {.grid = dim3(static_cast<unsigned>(p.num_experts), static_cast<unsigned>(sm_count)),
          .block = kThreads,
          .stream = stream},
         p);
}

void launch_grouped_sm90_128x128(const GroupedArrays& p, int sm_count, void* scratch,
                                 cudaStream_t stream) {
  launch(grouped_descriptors_kernel,
         {.grid = static_cast<unsigned>(sm_count), .block = 3, .stream = stream},
         static_cast<Descriptor*>(scratch));
  launch_grouped_sm80_128x128(p, sm_count, stream);
}

}  // namespace ernie::cuda
