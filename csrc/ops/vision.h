// What a vision tower and its resampler do beside products, norms and attention.
//
// Items are images and videos, one after the other. grid_thw has a row (t, gh, gw) for each: frames
// (1 for an image), and rows and columns of patches in a frame, both multiples of merge_size. It is
// read on the host during the call, whatever the device: where an item lies depends on all before
// it, and an op never waits for a GPU. A CUDA graph keeps the grid of its capture.
//
// Patches, with P = patch_size, in the order frame, block row, block column, row in block, column
// in block, where a block is merge_size x merge_size patches:
//
//   patches[p, (c*P + dy)*P + dx] = round(levels[c, frame[y*P + dy, x*P + dx, c]])
//
// (y, x) the place of patch p in its frame. levels holds the value of each of the 256 levels of
// each channel, so that any rescaling and normalisation is met to the bit.
//
// Source: patchify of the ERNIE-4.5-VL image processors; temporal pairs of their resampler.
#pragma once

#include <optional>

#include "core/tensor.h"

namespace ernie {

struct ImagePatchesArgs {
  TensorView out;       // [num_patches, 3*P*P], float32 or bfloat16, last stride 1
  TensorView pixels;    // uint8 [num_patches*3*P*P], contiguous: each item [t, gh*P, gw*P, 3]
  TensorView grid_thw;  // [num_items, 3], int64, contiguous, on the host
  TensorView levels;    // [3, 256], float32, contiguous
  int64_t patch_size;   // 1 to 1024
  int64_t merge_size;   // 1 to 1024
};

// out = linear(patches, weight), bit for bit as by the two ops, the patches in the dtype of out;
// they are never all in memory. On CUDA linear runs on as many rows at a time as `patches` has, and
// on what is left: the same bits with core/batch_invariant.h.
struct PatchEmbedArgs {
  TensorView out;     // [num_patches, embed_dim], float32 or bfloat16, last stride 1
  TensorView pixels;  // as in ImagePatchesArgs
  TensorView weight;  // [embed_dim, 3*P*P], float32 or bfloat16, or packed (ops/gemm.h: CPU). A
                      // float32 weight wants a float32 out.
  TensorView grid_thw, levels;  // as in ImagePatchesArgs
  // CUDA: room for some patches, [any number > 0, 3*P*P], dtype of out, last stride 1.
  std::optional<TensorView> patches;
  int64_t patch_size, merge_size;
};

// Frames side by side, with m = merge_size and k = temporal_size: x has one row for each m x m
// block, frame after frame. With B = gh/m * gw/m blocks in a frame, out of an item is
//
//   out[f*B + b] = [x[k*f*B + b], ..., x[(k*f + k-1)*B + b]],   f < t / k
//
// and of an item of one frame k copies of x[b]. t is 1 or a multiple of k.
struct TemporalMergeArgs {
  TensorView out;  // [num_tokens, k * hidden_size], dtype of x, last stride 1
  TensorView x;    // [num_rows, hidden_size], float32 or bfloat16, last stride 1
  TensorView grid_thw;
  int64_t merge_size, temporal_size;  // 1 to 1024
};

// out[rows[i]] = x[i]; other rows of out stay as they are. The CPU refuses rows that are out of
// range or named twice; CUDA skips the ones and leaves open whose values the others get.
struct ScatterRowsArgs {
  TensorView out;   // [num_tokens, hidden_size], dtype of x, last stride 1
  TensorView x;     // [n, hidden_size], float32 or bfloat16, last stride 1
  TensorView rows;  // [n], int32, contiguous
};

void image_patches(const ImagePatchesArgs&, const Stream&);
void patch_embed(const PatchEmbedArgs&, const Stream&);
void temporal_merge(const TemporalMergeArgs&, const Stream&);
void scatter_rows(const ScatterRowsArgs&, const Stream&);

// Rows of out, for whoever allocates it: checked, with the errors of the op.
int64_t count_patches(const char* op, const TensorView& pixels, const TensorView& grid_thw,
                      int64_t patch_size, int64_t merge_size);
int64_t count_merged_rows(const TensorView& x, const TensorView& grid_thw, int64_t merge_size,
                          int64_t temporal_size);

// Rows [first, first + count) of a matrix.
inline TensorView rows_of(const TensorView& t, int64_t first, int64_t count) {
  TensorView rows = t;
  rows.data = t.ptr<char>() + first * t.step(0) * size_of(t.dtype);
  rows.shape[0] = count;
  return rows;
}

namespace cpu {
void image_patches(const ImagePatchesArgs&, const Stream&);
void patch_embed(const PatchEmbedArgs&, const Stream&);
void temporal_merge(const TemporalMergeArgs&, const Stream&);
void scatter_rows(const ScatterRowsArgs&, const Stream&);
}  // namespace cpu
namespace cuda {
void image_patches(const ImagePatchesArgs&, const Stream&);
void patch_embed(const PatchEmbedArgs&, const Stream&);
void temporal_merge(const TemporalMergeArgs&, const Stream&);
void scatter_rows(const ScatterRowsArgs&, const Stream&);
}  // namespace cuda

}  // namespace ernie
