// Which kernel computes a grouped product, and how it cuts the work: gemm/config.h for the ragged
// rows of many experts. Only what the host knows decides: the rows of all experts together, never
// those of one.
//
// The kernels of this folder have one arithmetic for each pair of dtypes, the same for every number
// of rows. bfloat16 x: K is cut into kGemmSlices slices; each is one chain of m16n8k16 products, k
// ascending by steps of four 16-byte pieces of a weight's row, and the slices are added in order.
// So a row of a bfloat16 or int8 weight has the bits of the sliced kernels of linear and of
// wint8_linear. CUTLASS's kernels have one chain over K; `batch_invariant` leaves them out.
#pragma once

#include "cuda/gemm/config.h"
#include "ops/grouped_gemm_core.h"

namespace ernie::cuda {

struct GroupedProblem {
  GemmProblem product;  // num_tokens: rows of all experts; out_features: of the result
  int64_t num_experts;
  bool gated;                   // silu_and_mul of twice as many rows of the weight
  bool gathers = false;         // rows of x are given by their places
  int64_t workspace_bytes = 0;  // that the call brings

  int64_t rows_of_weight() const { return gated ? 2 * product.out_features : product.out_features; }
  int64_t mean_rows() const { return ceil_div(product.num_tokens, num_experts); }
};

// Where CUTLASS's kernels find what they read and write besides the tensors, in bytes from the
// start of the pieces: an entry an expert each, their own scratch, and rows of bfloat16.
struct GroupedWorkspace {
  int64_t sizes, x, weight, out, x_stride, weight_stride, out_stride;
  int64_t scratch;
  int64_t gathered;  // [num_rows, in_features] where gathers
  int64_t gate_up;   // [num_rows, 2 out_features] where gated
  int64_t total;
};

namespace grouped_plan {

// k of one step: a quad's four pieces of 16 bytes. With float32 x: four of 8 k.
inline int step_of(DType x, DType weight) {
  if (x == DType::kF32 || weight == DType::kBF16) return 32;
  return weight == DType::kI8 ? 64 : 128;
}

// Rows of x that a narrow block takes at most. For 32, four times 32 k of 4-bit weights want more
// registers than two blocks a multiprocessor leave: an expert's rows beyond 16 then read its weight
// once more, from L2.
constexpr int most_narrow_rows(DType weight) { return weight == DType::kU8 ? 16 : 32; }

// Rows of the weight that it multiplies: 40 to 80 KiB of them at K = 2560, so that the search for
// the expert is a small part of its time.
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

// A tile block's rows of the weight: as many for few rows of x as for many, since it reads x again
// for every 128 of them.
constexpr int kTileWeightRows = 128;

// 96 KiB of stages, or less: what every GPU from 8.0 on has.
constexpr int tile_stages(DType weight, int rows) {
  return weight == DType::kU8 && rows == 128 ? 2 : 4;
}

inline GemmConfig tile(const GroupedProblem& g, int rows) {
  constexpr int64_t kWeightBytes = 64;  // of one row in one step
  const int stages = tile_stages(g.product.weight, rows);
  GemmConfig c = cut(g, GemmKernel::kTileBf16, rows, kTileWeightRows, stages, 2 * kTileWeightRows);
  c.shared_bytes = stages * (int64_t{2} * rows * c.tile_k + kTileWeightRows * kWeightBytes);
  return c;
}

// Room for what CUTLASS writes for each multiprocessor: its TMA descriptors, of 128 bytes each.
constexpr int64_t scratch_bytes(int64_t sm_count) { return 1024 * sm_count; }

// CUTLASS neither gathers nor gates: rows of x are copied, and its sums written and read, before
// and after. By analysis wgmma is worth that; mma.sync, which the tile kernel has too, is not.
inline bool wants_cutlass(const GroupedProblem& g) {
  constexpr int64_t kRows = 128;               // of an expert: a tile of CUTLASS's
  constexpr int64_t kMostExtent = 0x3fffffff;  // with which no workspace exceeds 64 bits
  const GemmProblem& p = g.product;
  const bool fits = std::max({p.num_tokens, p.out_features, p.in_features}) <= kMostExtent;
  return fits && p.has_cutlass && !p.batch_invariant && p.x == DType::kBF16 &&
         p.weight == DType::kBF16 && p.inputs_aligned && p.outputs_aligned && p.in_features > 0 &&
         g.mean_rows() >= kRows && (p.capability == 90 || !(g.gated || g.gathers));
}

// By the mean of an expert's rows. A tile should hold the rows of nearly all experts, which differ:
// those that do not fit read the weight once more, from L2. From 24 rows on, tiles in shared memory
// spare the loads of x; of 128 rows once an expert fills more than one.
inline GemmConfig by_hand(const GroupedProblem& g) {
  const GemmProblem& p = g.product;
  const int64_t mean = g.mean_rows();
  if (p.x == DType::kF32) return narrow(g, 8);
  if (mean > 24) return tile(g, p.inputs_aligned && mean > 160 ? 128 : 64);
  if (mean <= 4 || !p.inputs_aligned) return narrow(g, 8);
  return narrow(g, mean <= 8 ? 16 : most_narrow_rows(p.weight));
}

// One tile for each architecture; an expert's last one is cut short.
inline GemmConfig cutlass(const GroupedProblem& g) {
  const bool has_wgmma = g.product.capability == 90;
  GemmProblem p = g.product;
  p.out_features = g.rows_of_weight();
  GemmConfig c = has_wgmma ? gemm_plan::tiled(p, GemmKernel::kSm90, 128, 128, 64, 0, 384)
                           : gemm_plan::tiled(p, GemmKernel::kSm80, 128, 128, 32, 4, 128);
  c.token_blocks = max_row_tiles(p.num_tokens, g.num_experts, c.tile_tokens);
  return c;
}

}  // namespace grouped_plan

// Of the pieces of a workspace, in bytes; TMA descriptors want 64. The workspace itself begins at a
// multiple of 16, its first piece at the next one of this.
constexpr int64_t kGroupedWorkspaceAlignment = 256;

// Of a problem that wants CUTLASS.
inline GroupedWorkspace grouped_workspace(const GroupedProblem& g) {
  const GemmProblem& p = g.product;
  int64_t end = 0;
  const auto place = [&](int64_t rows, int64_t bytes_per_row) {
    const int64_t begin = end;
    end += round_up(rows * bytes_per_row, kGroupedWorkspaceAlignment);
    return begin;
  };
  GroupedWorkspace w = {.sizes = place(g.num_experts, 3 * sizeof(int32_t)),
                        .x = place(g.num_experts, sizeof(void*)),
                        .weight = place(g.num_experts, sizeof(void*)),
                        .out = place(g.num_experts, sizeof(void*)),
                        .x_stride = place(g.num_experts, sizeof(int64_t)),
                        .weight_stride = place(g.num_experts, sizeof(int64_t)),
                        .out_stride = place(g.num_experts, sizeof(int64_t)),
                        .scratch = place(1, grouped_plan::scratch_bytes(p.sm_count)),
                        .gathered = place(g.gathers ? p.num_tokens : 0, 2 * p.in_features),
                        .gate_up = place(g.gated ? p.num_tokens : 0, 4 * p.out_features),
                        .total = 0};
  w.total = end + kGroupedWorkspaceAlignment - 16;
  return w;
}

// inputs_aligned: rows of x and of the weight start at 16 bytes (float32 x: of the weight, at those
// of 8 k), and in_features is a multiple of what 16 bytes of the weight hold, 8 at least.
// token_blocks of the plan are row tiles, the most there can be; tile_features outputs, of twice as
// many rows of the weight where gated by this folder's kernels. CUTLASS's are in no plan for a call
// with less workspace than they want. Throws as plan_gemm does.
inline GemmConfig plan_grouped(const GroupedProblem& g) {
  const char* op = g.gated ? "grouped_linear_silu_and_mul" : "grouped_linear";
  if (g.num_experts < 1)
    throw ArgumentError(std::string(op) + ": num_experts: expected at least 1, got " +
                        std::to_string(g.num_experts));
  return gemm_plan::checked_plan(op, g.product, [&](const GemmProblem&) {
    const bool cutlass =
        grouped_plan::wants_cutlass(g) && g.workspace_bytes >= grouped_workspace(g).total;
    return cutlass ? grouped_plan::cutlass(g) : grouped_plan::by_hand(g);
  });
}

// What makes plan_grouped free in its choice; 0 where it needs none.
inline int64_t grouped_workspace_bytes(const GroupedProblem& g) {
  return grouped_plan::wants_cutlass(g) ? grouped_workspace(g).total : 0;
}

}  // namespace ernie::cuda
