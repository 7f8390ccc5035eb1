// Which kernel computes a linear layer with an int8 weight, and how it cuts the work: gemm/config.h
// with other kernels. `inputs_aligned` wants in_features to be 16n here; `weight` is int8.
//
// bfloat16 x has one arithmetic. K is cut into kGemmSlices equal slices; each slice is one chain of
// m16n8k16 products, k ascending by steps of kByteStepK, and the slices are added in order. Both
// kernels, whatever their tiles, give the same bits for the same row. Float32 x has gemm's two
// orders, of which `batch_invariant` keeps to that of kNarrowF32.
#pragma once

#include "cuda/gemm/config.h"

namespace ernie::cuda {

constexpr int kByteStepK = 64;  // k of one step: 16 bytes of a weight's row for each lane of a quad

namespace wint8_plan {

inline int64_t slice_of(const GemmProblem& p) {
  return std::max<int64_t>(kByteStepK, round_up(ceil_div(p.in_features, kGemmSlices), kByteStepK));
}

// 8 features a block where 16 would leave multiprocessors without one. Above 16 tokens the loads of
// x are four times those of the weight, and come from L1.
inline GemmConfig narrow_bf16(const GemmProblem& p) {
  const int tokens = p.num_tokens <= 8 ? 8 : p.num_tokens <= 16 ? 16 : p.num_tokens <= 32 ? 32 : 64;
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
  constexpr auto kTile = GemmKernel::kTileBf16;
  GemmConfig c = gemm_plan::tiled(p, kTile, 128, 128, kByteStepK, 4, 256);
  if (c.blocks() < p.sm_count) c = gemm_plan::tiled(p, kTile, 64, 64, kByteStepK, 4, 128);
  c.slice = slice_of(p);
  c.shared_bytes = int64_t{c.stages} * c.tile_k * (2 * c.tile_tokens + c.tile_features);
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

}  // namespace wint8_plan

// Throws as plan_gemm does.
inline GemmConfig plan_wint8(const GemmProblem& p) {
  return gemm_plan::checked_plan("wint8_linear", p, [](const GemmProblem& problem) {
    return problem.x == DType::kBF16 ? wint8_plan::bf16(problem) : wint8_plan::f32(problem);
  });
}

}  // namespace ernie::cuda
