// Which kernel of this folder computes a linear layer, and how it cuts the work. Host code without
// CUDA: sizes in, plain numbers out; the launcher does as it says, and tests ask it directly.
//
// Two arithmetics exist for bfloat16 x bfloat16:
//
//   sliced   kNarrowBf16 and kTileBf16. K is cut into kGemmSlices equal slices; each slice is one
//            chain of m16n8k16 products, k ascending, and the slices are added in order. Both
//            kernels give the same bits for the same row, whatever num_tokens is.
//   CUTLASS  kSm80 and kSm90. One chain over K.
//
// `batch_invariant` keeps to the sliced one. With float32 activations it keeps to kNarrowF32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/checked.h"
#include "core/error.h"
#include "core/tensor.h"

namespace ernie::cuda {

constexpr int kGemmSlices = 8;  // one warp each in the narrow kernels

enum class GemmKernel : uint8_t {
  kNarrowBf16,  // few tokens: mma on fragments straight from memory, each weight read once
  kNarrowF32,   // few tokens, float32 activations
  kTileBf16,    // any shape: mma on tiles in shared memory
  kTileF32,     // any shape, float32 activations: FMA, no TF32
  kSm80,        // CUTLASS, mma.sync
  kSm90,        // CUTLASS, TMA and wgmma
};

inline const char* name_of(GemmKernel kernel) {
  constexpr const char* kNames[] = {"narrow_bf16", "narrow_f32", "tile_bf16",
                                    "tile_f32",    "sm80",       "sm90"};
  return kNames[static_cast<int>(kernel)];
}

struct GemmProblem {
  int64_t num_tokens, out_features, in_features;
  DType x = DType::kBF16, weight = DType::kBF16, out = DType::kBF16;
  bool inputs_aligned = true;   // rows of x and weight start at 16 bytes; in_features is 8n
  bool outputs_aligned = true;  // rows of out and the bias likewise; out_features is 8n
  bool activated = false;       // an activation of the sums
  bool batch_invariant = false;
  bool has_cutlass = true;  // the build has its kernels
  int capability = 90;      // 10 * major + minor
  int sm_count = 132;
};

struct GemmConfig {
  GemmKernel kernel;
  bool aligned;          // 16-byte loads; without it, element by element
  int tile_tokens;       // outputs of one block: tokens x features
  int tile_features;     //
  int tile_k;            // depth of one step; 0 where a warp streams its slice
  int stages;            // tiles in flight; 0 likewise
  int threads;           // a block
  int64_t slice;         // k of one slice, a multiple of tile_k; in_features where not sliced
  int64_t token_blocks;  // ceil(num_tokens / tile_tokens)
  int64_t feature_blocks;
  int64_t shared_bytes;  // dynamic shared memory; 0 where static or CUTLASS's own

  int64_t blocks() const { return token_blocks * feature_blocks; }
};

inline std::string to_string(const GemmConfig& c) {
  return std::string(name_of(c.kernel)) + " " + std::to_string(c.tile_tokens) + "x" +
         std::to_string(c.tile_features) + "x" + std::to_string(c.tile_k) + " stages " +
         std::to_string(c.stages) + " slice " + std::to_string(c.slice) + " blocks " +
         std::to_string(c.token_blocks) + "x" + std::to_string(c.feature_blocks) +
         (c.aligned ? "" : " unaligned");
}

namespace gemm_plan {

inline GemmConfig tiled(const GemmProblem& p, GemmKernel kernel, int tokens, int features, int k,
                        int stages, int threads) {
  return {.kernel = kernel,
          .aligned = p.inputs_aligned,
          .tile_tokens = tokens,
          .tile_features = features,
          .tile_k = k,
          .stages = stages,
          .threads = threads,
          .slice = p.in_features,
          .token_blocks = ceil_div(p.num_tokens, tokens),
          .feature_blocks = ceil_div(p.out_features, features),
          .shared_bytes = 0};
}

// A multiple of 32, the k of one step of the sliced kernels.
inline int64_t slice_of(const GemmProblem& p) {
  return std::max<int64_t>(32, round_up(ceil_div(p.in_features, kGemmSlices), 32));
}

// The more tokens a warp serves, the more features share one load of x: at 64 tokens x 16 features
// the loads of x are four times those of the weight, and come from L1.
inline GemmConfig narrow_bf16(const GemmProblem& p) {
  const int tokens = p.num_tokens <= 16 ? 16 : p.num_tokens <= 32 ? 32 : 64;
  GemmConfig c =
      tiled(p, GemmKernel::kNarrowBf16, tokens, tokens == 16 ? 8 : 16, 0, 0, 32 * kGemmSlices);
  c.slice = slice_of(p);
  return c;
}

inline GemmConfig narrow_f32(const GemmProblem& p) {
  GemmConfig c =
      tiled(p, GemmKernel::kNarrowF32, 8, p.num_tokens <= 8 ? 8 : 32, 0, 0, 32 * kGemmSlices);
  c.slice = slice_of(p);
  return c;
}

// 128 x 128 once that gives every multiprocessor a block.
inline GemmConfig tile_bf16(const GemmProblem& p) {
  GemmConfig c = tiled(p, GemmKernel::kTileBf16, 128, 128, 32, 4, 256);
  if (c.blocks() < p.sm_count) c = tiled(p, GemmKernel::kTileBf16, 64, 64, 32, 4, 128);
  c.slice = slice_of(p);
  c.shared_bytes = int64_t{c.stages} * (c.tile_tokens + c.tile_features) * c.tile_k * 2;
  return c;
}

inline GemmConfig tile_f32(const GemmProblem& p) {
  return tiled(p, GemmKernel::kTileF32, 64, 64, 16, 2, 128);
}

// A 128 x 256 tile is four of 64 x 128 and, by analysis, takes the time of three: it is taken when
// its waves over the GPU end sooner. An activation is computed while another warpgroup multiplies,
// as only the small tile does. stages 0: CUTLASS takes as many as fit.
inline GemmConfig sm90(const GemmProblem& p) {
  const GemmConfig large = tiled(p, GemmKernel::kSm90, 128, 256, 64, 0, 384);
  const GemmConfig small = tiled(p, GemmKernel::kSm90, 64, 128, 64, 0, 384);
  const auto waves = [&](const GemmConfig& c) { return ceil_div(c.blocks(), p.sm_count); };
  return p.out == DType::kBF16 && !p.activated && 3 * waves(large) <= waves(small) ? large : small;
}

inline GemmConfig sm80(const GemmProblem& p) {
  return tiled(p, GemmKernel::kSm80, 128, 128, 32, 4, 128);
}

inline GemmConfig bf16(const GemmProblem& p) {
  const bool sliced =
      !p.has_cutlass || p.batch_invariant || !p.inputs_aligned || p.in_features == 0;
  // The sm_80 kernel takes its bias in the dtype of out; those with activations write bfloat16.
  const bool cutlass = !sliced && p.outputs_aligned &&
                       ((p.capability == 90 && !p.activated) || p.out == DType::kBF16);
  if (!cutlass) return p.num_tokens <= 64 ? narrow_bf16(p) : tile_bf16(p);
  if (p.num_tokens <= 32) return narrow_bf16(p);
  const GemmConfig tile = p.capability == 90 ? sm90(p) : sm80(p);
  // While tiles leave half of the GPU idle, streaming the weight (twice, from L2) is faster.
  return p.num_tokens <= 128 && 2 * tile.blocks() <= p.sm_count ? narrow_bf16(p) : tile;
}

inline GemmConfig f32(const GemmProblem& p) {
  return p.batch_invariant || p.num_tokens <= 32 || p.in_features == 0 ? narrow_f32(p)
                                                                       : tile_f32(p);
}

// What `choose` makes of a problem. Throws ArgumentError for what is none (a negative extent, no
// multiprocessor), DeviceError for a GPU before compute capability 8.0, UnsupportedError for
// extents that no index of the kernels holds.
template <class Choose>
GemmConfig checked_plan(const std::string& op, const GemmProblem& p, const Choose& choose) {
  constexpr int64_t kMaxExtent = 0x7fffffff;
  if (p.capability < 80)
    throw DeviceError(op + ": no kernel for compute capability " +
                      std::to_string(p.capability / 10) + "." + std::to_string(p.capability % 10) +
                      "; 8.0 or newer is needed");
  const auto extents = [&] {
    return "num_tokens=" + std::to_string(p.num_tokens) +
           ", out_features=" + std::to_string(p.out_features) +
           ", in_features=" + std::to_string(p.in_features);
  };
  if (std::min({p.num_tokens, p.out_features, p.in_features}) < 0)
    throw ArgumentError(op + ": expected extents >= 0, got " + extents());
  if (p.sm_count < 1)
    throw ArgumentError(op + ": sm_count: expected at least 1, got " + std::to_string(p.sm_count));
  if (std::max({p.num_tokens, p.out_features, p.in_features}) <= kMaxExtent - 1024) {
    const GemmConfig c = choose(p);
    if (c.blocks() <= kMaxExtent) return c;
  }
  throw UnsupportedError(op + ": no kernel for " + extents() + "; split the call");
}

}  // namespace gemm_plan

// Throws as checked_plan does. The choice of arithmetic depends on num_tokens unless
// `batch_invariant` is set; slices depend on in_features alone.
inline GemmConfig plan_gemm(const GemmProblem& p) {
  return gemm_plan::checked_plan("linear", p, [](const GemmProblem& problem) {
    return problem.x == DType::kBF16 ? gemm_plan::bf16(problem) : gemm_plan::f32(problem);
  });
}

}  // namespace ernie::cuda
