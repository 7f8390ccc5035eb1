// Which kernel computes a linear layer with an int8 or a 4-bit weight, and how it cuts the work:
// gemm/config.h with other kernels. `inputs_aligned` wants in_features to be a multiple of what 16
// bytes of the weight hold; `weight` is int8, or uint8 of two weights each.
//
// bfloat16 x has one arithmetic. K is cut into kGemmSlices equal slices; each slice is one chain of
// m16n8k16 products, k ascending by steps of a quad's four loads of 16 bytes, and the slices are
// added in order. Both kernels, whatever their tiles, give the same bits for the same row. Float32
// x has gemm's two orders, of which `batch_invariant` keeps to that of kNarrowF32.
#pragma once

#include "cuda/gemm/config.h"

namespace ernie::cuda {

namespace wint_plan {

// k of one step: 16 bytes of a weight's row for each lane of a quad.
constexpr int step_of(DType weight) { return weight == DType::kI8 ? 64 : 128; }

// Tokens that a narrow block takes at most. Of 64, loads of single elements of 4-bit weights want
// more registers than there are.
constexpr int most_narrow_tokens(DType weight, bool aligned) {
  return weight == DType::kU8 && !aligned ? 32 : 64;
}

// 96 KiB of stages, or less: what every GPU from 8.0 on has.
constexpr int tile_stages(DType weight, int tile) {
  return weight == DType::kU8 && tile == 128 ? 2 : 4;
}

inline int64_t slice_of(const GemmProblem& p) {
  const int64_t step = step_of(p.weight);
  return std::max(step, round_up(ceil_div(p.in_features, kGemmSlices), step));
}

// 8 features a block where 16 would leave multiprocessors without one. Above 16 tokens the loads of
// x are four times those of the weight, and come from L1.
inline GemmConfig narrow_bf16(const GemmProblem& p) {
  const int most = most_narrow_tokens(p.weight, p.inputs_aligned);
  const int tokens = p.num_tokens <= 8    ? 8
                     : p.num_tokens <= 16 ? 16
                     : p.num_tokens <= 32 ? 32
                                          : most;
  const bool few = tokens == 8 && ceil_div(p.out_features, 16) < p.sm_count;
  GemmConfig c = gemm_plan::tiled(p, GemmKernel::kNarrowBf16, tokens,
                                  few            ? 8
                                  : tokens == 64 ? 32
                                                 : 16,
                                  0, 0, 32 * kGemmSlices);
  c.slice = slice_of(p);
  c.shared_bytes = int64_t{kGemmSlices} * c.tile_tokens * c.tile_features * sizeof(float);
  return c;
}

// 128 x 128 once that gives every multiprocessor a block.
inline GemmConfig tile_bf16(const GemmProblem& p) {
  const auto cut = [&](int tile) {
    return gemm_plan::tiled(p, GemmKernel::kTileBf16, tile, tile, step_of(p.weight),
                            tile_stages(p.weight, tile), 2 * tile);
  };
  constexpr int64_t kWeightBytes = 64;  // of one row in one step
  GemmConfig c = cut(128);
  if (c.blocks() < p.sm_count) c = cut(64);
  c.slice = slice_of(p);
  c.shared_bytes =
      c.stages * (2 * int64_t{c.tile_k} * c.tile_tokens + kWeightBytes * c.tile_features);
  return c;
}

inline GemmConfig bf16(const GemmProblem& p) {
  if (p.num_tokens <= 64) return narrow_bf16(p);
  const GemmConfig tile = tile_bf16(p);
  // While tiles leave half of the GPU idle, streaming the weight (twice, from L2) is faster.
  return p.num_tokens <= 128 && 2 * tile.blocks() <= p.sm_count ? narrow_bf16(p) : tile;
}

inline GemmConfig f32(const GemmProblem& p) {
  GemmConfig c = gemm_plan::f32(p);
  if (c.kernel == GemmKernel::kNarrowF32) c.slice = slice_of(p);
  return c;
}

}  // namespace wint_plan

// Throws as plan_gemm does.
inline GemmConfig plan_wint(const GemmProblem& p) {
  const char* op = p.weight == DType::kI8 ? "wint8_linear" : "wint4_linear";
  return gemm_plan::checked_plan(op, p, [](const GemmProblem& problem) {
    return problem.x == DType::kBF16 ? wint_plan::bf16(problem) : wint_plan::f32(problem);
  });
}

}  // namespace ernie::cuda
