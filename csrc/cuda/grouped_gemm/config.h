// Which kernel computes a grouped product, and how it cuts the work: gemm/config.h for the ragged
// rows of many experts. Only what the host knows decides: the rows of all experts together, never
// those of one.
//
// One arithmetic for each pair of dtypes, the same for every number of rows. bfloat16 x: K is cut
// into kGemmSlices slices; each is one chain of m16n8k16 products, k ascending by steps of four
// 16-byte pieces of a weight's row, and the slices are added in order. So a row of a bfloat16 or
// int8 weight has the bits of the sliced kernels of linear and of wint8_linear.
#pragma once

#include "cuda/gemm/config.h"
#include "ops/grouped_gemm_core.h"

namespace ernie::cuda {

struct GroupedProblem {
  GemmProblem product;  // num_tokens: rows of all experts; out_features: of the result
  int64_t num_experts;
  bool gated;  // silu_and_mul of twice as many rows of the weight
};

namespace grouped_plan {

// k of one step: a quad's four pieces of 16 bytes. With float32 x: four of 8 k.
inline int step_of(DType x, DType weight) {
  if (x == DType::kF32 || weight == DType::kBF16) return 32;
  return weight == DType::kI8 ? 64 : 128;
}

// Rows of the weight that a narrow block multiplies: 40 to 80 KiB of them at K = 2560, so that the
// search for the expert is a small part of its time. With 32 rows of x, 16 of a quantized weight:
// 32 take more than the registers of two blocks a multiprocessor.
constexpr int narrow_weight_rows(DType weight, int tile_rows) {
  return (weight == DType::kBF16) == (tile_rows < 32) ? 16 : 32;
}

inline GemmConfig cut(const GroupedProblem& g, GemmKernel kernel, int rows, int weight_rows,
                      int stages, int threads) {
  const GemmProblem& p = g.product;
  const int step = step_of(p.x, p.weight);
  GemmConfig c = gemm_plan::tiled(p, kernel, rows, g.gated ? weight_rows / 2 : weight_rows,
                                  stages == 0 ? 0 : step, stages, threads);
  c.token_blocks = max_row_tiles(p.num_tokens, g.num_experts, rows);
  c.slice = std::max<int64_t>(step, round_up(ceil_div(p.in_features, kGemmSlices), step));
  return c;
}

inline GemmConfig narrow(const GroupedProblem& g, int rows) {
  const bool f32 = g.product.x == DType::kF32;
  return cut(g, f32 ? GemmKernel::kNarrowF32 : GemmKernel::kNarrowBf16, rows,
             f32 ? 16 : narrow_weight_rows(g.product.weight, rows), 0, 32 * kGemmSlices);
}

// 96 KiB of stages, or less: what every GPU from 8.0 on has.
constexpr int tile_stages(DType weight) { return weight == DType::kU8 ? 2 : 4; }

inline GemmConfig tile(const GroupedProblem& g, int rows) {
  constexpr int kWeightBytes = 64;  // of one row in one step
  const int stages = tile_stages(g.product.weight);
  GemmConfig c = cut(g, GemmKernel::kTileBf16, rows, rows, stages, 2 * rows);
  c.shared_bytes = int64_t{stages} * rows * (2 * c.tile_k + kWeightBytes);
  return c;
}

// By the mean of an expert's rows. A tile should hold the rows of nearly all experts, which differ:
// those that do not fit read the weight once more, from L2. From 24 rows on, tiles in shared memory
// spare the loads of x; of 128 rows once an expert fills more than one.
inline GemmConfig choose(const GroupedProblem& g) {
  const GemmProblem& p = g.product;
  const int64_t mean = ceil_div(p.num_tokens, g.num_experts);
  if (p.x == DType::kF32) return narrow(g, 8);
  if (mean > 24) return tile(g, p.inputs_aligned && mean > 160 ? 128 : 64);
  return narrow(g, mean <= 4 || !p.inputs_aligned ? 8 : mean <= 8 ? 16 : 32);
}

}  // namespace grouped_plan

// inputs_aligned: rows of x and of the weight start at 16 bytes (float32 x: of the weight, at those
// of 8 k), and in_features is a multiple of what 16 bytes of the weight hold, 8 at least.
// token_blocks of the plan are row tiles, the most there can be; tile_features outputs, of twice as
// many rows of the weight where gated. Throws as plan_gemm does.
inline GemmConfig plan_grouped(const GroupedProblem& g) {
  const char* op = g.gated ? "grouped_linear_silu_and_mul" : "grouped_linear";
  if (g.num_experts < 1)
    throw ArgumentError(std::string(op) + ": num_experts: expected at least 1, got " +
                        std::to_string(g.num_experts));
  return gemm_plan::checked_plan(op, g.product,
                                 [&](const GemmProblem&) { return grouped_plan::choose(g); });
}

}  // namespace ernie::cuda
