#include "cuda/common.cuh"
#include "cuda/gemm/load_floats.cuh"
#include "cuda/gemm/work.cuh"
#include "cuda/grouped_gemm/weight.cuh"
#include "cuda/grouped_gemm/work.cuh"

namespace ernie::cuda {
namespace {

constexpr int kPieceK = 8;  // of one row, for one lane and step
constexpr int kRows = 8, kWeightRows = 16, kFeatureTiles = kWeightRows / 8;
constexpr int kThreads = 32 * kGemmSlices;

template <DType kDtype>
using Element = std::conditional_t<
    kDtype == DType::kF32, float,
    std::conditional_t<kDtype == DType::kBF16, bf16,
                       std::conditional_t<kDtype == DType::kI8, int8_t, Nibbles>>>;

// Float32 x. A block owns up to 8 rows of one expert by 16 rows of its weight; warp s sums slice s
// of K, where the four lanes of a quad take alternate pieces of a weight's row. A sum is 32 chains
// of FMA, added in a fixed order: over the quad, then over the slices.
//
// Bound by memory while an expert has up to 8 rows (each byte of its weight is read once), by L1
// above.
template <DType kDtype, bool kGated, bool kAligned>
__global__ void __launch_bounds__(kThreads, 2)
    grouped_narrow_f32_kernel(GroupedOperands p, int slice_length, int feature_blocks) {
  constexpr int kOutputs = kGated ? kWeightRows / 2 : kWeightRows;
  ERNIE_SHARED(float, partial, [kGemmSlices * kRows * kWeightRows]);
  ERNIE_SHARED(int64_t, x_offsets, [kRows]);

  const int64_t rows_of_weight = kGated ? int64_t{2} * p.n : p.n;
  const RowTile tile = find_row_tile<kThreads>(p, kRows, blockIdx.x / feature_blocks);
  if (tile.expert < 0) return;
  const int64_t output0 = int64_t{blockIdx.x % feature_blocks} * kOutputs;
  const auto [quad, column, slice, begin, end] = SlicePlace(p.k, slice_length);
  if (static_cast<int>(threadIdx.x) < tile.rows.count)
    x_offsets[threadIdx.x] = x_offset(p, tile.rows.begin + static_cast<int>(threadIdx.x));
  __syncthreads();

  const char* weight[kFeatureTiles];
  int weight_end[kFeatureTiles];
#pragma unroll
  for (int f = 0; f < kFeatureTiles; ++f) {
    const WeightRow at = weight_row(output0, 8 * f + quad, kGated, p.n);
    weight_end[f] = at.output < p.n ? end : 0;
    weight[f] = weight_data<kDtype>(p, tile.expert, rows_of_weight, at.output < p.n ? at.row : 0);
  }

  float acc[kRows][kFeatureTiles] = {};
  for (int k0 = begin; k0 < end; k0 += 4 * kPieceK) {
    const int k = k0 + kPieceK * column;
    float w[kFeatureTiles][kPieceK];
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f)
      load_floats<kAligned>(w[f], reinterpret_cast<const Element<kDtype>*>(weight[f]), k,
                            weight_end[f]);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (t >= tile.rows.count) break;
      const float* x = static_cast<const float*>(p.x) + x_offsets[t];
      float v[kPieceK];
      load_floats<kAligned>(v, x, k, end);
#pragma unroll
      for (int f = 0; f < kFeatureTiles; ++f)
#pragma unroll
        for (int i = 0; i < kPieceK; ++i) acc[t][f] = fmaf(v[i], w[f][i], acc[t][f]);
    }
  }

  float* mine = partial + slice * kRows * kWeightRows;
#pragma unroll
  for (int t = 0; t < kRows; ++t)
#pragma unroll
    for (int f = 0; f < kFeatureTiles; ++f) {
      const float sum = sum_of_quad(acc[t][f]);
      if (column == 0) mine[t * kWeightRows + 8 * f + quad] = sum;
    }
  __syncthreads();

  const auto sum_of = [&](int row, int local) {
    const float sum = sum_of_slices<kRows * kWeightRows>(partial, row * kWeightRows + local);
    const int64_t at = weight_row(output0, local, kGated, p.n).row;
    return sum * factor_of(p, tile.expert, rows_of_weight, at, 1.f);
  };
  for (int i = threadIdx.x; i < tile.rows.count * kOutputs; i += kThreads) {
    const int row = i / kOutputs, to_row = tile.rows.begin + row, local = i % kOutputs;
    if (output0 + local >= p.n) continue;
    if constexpr (kGated)  // eight outputs: their gate rows are the first eight, the up rows follow
      store_gated<float>(p, to_row, output0 + local, sum_of(row, local), sum_of(row, local + 8));
    else
      store_sum<float>(p, to_row, output0 + local, sum_of(row, local));
  }
}

// ------------------------------------------------------------------------------------- launcher

template <DType kDtype>
void launch_t(const GroupedOperands& p, bool gated, const GemmConfig& c, cudaStream_t stream) {
  const auto kernel = gated ? (c.aligned ? grouped_narrow_f32_kernel<kDtype, true, true>
                                         : grouped_narrow_f32_kernel<kDtype, true, false>)
                            : (c.aligned ? grouped_narrow_f32_kernel<kDtype, false, true>
                                         : grouped_narrow_f32_kernel<kDtype, false, false>);
  launch(kernel,
         {.grid = static_cast<unsigned>(c.blocks()),
          .block = static_cast<unsigned>(c.threads),
          .stream = stream},
         p, static_cast<int>(c.slice), static_cast<int>(c.feature_blocks));
}

}  // namespace

void launch_grouped_narrow_f32(const GroupedOperands& p, DType weight, bool gated,
                               const GemmConfig& c, cudaStream_t stream) {
  switch (weight) {
    case DType::kBF16:
      return launch_t<DType::kBF16>(p, gated, c, stream);
    case DType::kI8:
      return launch_t<DType::kI8>(p, gated, c, stream);
    case DType::kU8:
      return launch_t<DType::kU8>(p, gated, c, stream);
    default:
      return launch_t<DType::kF32>(p, gated, c, stream);
  }
}

}  // namespace ernie::cuda
