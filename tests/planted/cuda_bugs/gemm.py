"""Bugs of the bfloat16 and float32 products."""

from __future__ import annotations

from backends import BEYOND, COPY, DEADLOCK, MISALIGNED, RACE, UNWRITTEN, WRONG
from bug import CUDA_GEMM, Bug

FRAGMENT = "csrc/cuda/gemm/fragment.cuh"
GEMM_CU = "csrc/cuda/gemm/gemm.cu"
NARROW_BF16 = "csrc/cuda/gemm/narrow_bf16.cu"
NARROW_F32 = "csrc/cuda/gemm/narrow_f32.cu"
OUTPUT = "csrc/cuda/gemm/output.cuh"
PIPELINE = "csrc/cuda/gemm/pipeline.cuh"
WORK = "csrc/cuda/gemm/work.cuh"
TILE_BF16 = "csrc/cuda/gemm/tile_bf16.cu"
TILE_F32 = "csrc/cuda/gemm/tile_f32.cu"

BUGS = [
    Bug(
        "narrow_bf16: rows and columns of a fragment swapped",
        FRAGMENT,
        "{x_low.x, x_high.x, x_low.y, x_high.y}",
        "{x_low.x, x_low.y, x_high.x, x_high.y}",
        CUDA_GEMM,
        (WRONG,),
        NARROW_BF16,
    ),
    Bug(
        "narrow_bf16: the last pair of an odd row read whole",
        FRAGMENT,
        "const uint32_t high = k + 2 * i + 1 < end ?",
        "const uint32_t high = k + 2 * i < end ?",
        CUDA_GEMM,
        (BEYOND, WRONG),
        NARROW_BF16,
    ),
    Bug(
        "narrow_bf16: tokens that are not there are read",
        NARROW_BF16,
        "high < p.m ? end : 0);",
        "end);",
        CUDA_GEMM,
        (BEYOND,),
    ),
    Bug(
        "narrow_bf16: features that are not there are written",
        NARROW_BF16,
        "if (to_token >= p.m || to_feature >= p.n) continue;",
        "if (to_token >= p.m) continue;",
        CUDA_GEMM,
        (BEYOND, RACE),
    ),
    Bug(
        "narrow_bf16: shared memory for one slice too few",
        NARROW_BF16,
        "ERNIE_SHARED(float, partial, [kGemmSlices * kTokens * kFeatures]);",
        "ERNIE_SHARED(float, partial, [(kGemmSlices - 1) * kTokens * kFeatures]);",
        CUDA_GEMM,
        (BEYOND,),
    ),
    Bug(
        "narrow_bf16: accumulator not cleared",
        NARROW_BF16,
        "float acc[kTokenTiles][kFeatureTiles][4] = {};",
        "float acc[kTokenTiles][kFeatureTiles][4];",
        CUDA_GEMM,
        (WRONG,),
    ),
    Bug(
        "narrow_bf16: warps without k return before the barrier",
        NARROW_BF16,
        "  float* mine = partial",
        "  if (begin >= p.k) return;\n  float* mine = partial",
        CUDA_GEMM,
        (UNWRITTEN,),
    ),
    Bug(
        "narrow_f32: sum of a quad from the wrong lane",
        WORK,
        "sum += __shfl_xor_sync(0xffffffffu, sum, 2);",
        "sum += __shfl_xor_sync(0xffffffffu, sum, 4);",
        CUDA_GEMM,
        (WRONG,),
        NARROW_F32,
    ),
    Bug(
        "narrow_f32: four lanes write a sum",
        NARROW_F32,
        "if (chunk == 0) mine[t * kFeatures + 8 * f + quad] = sum;",
        "mine[t * kFeatures + 8 * f + quad] = sum;",
        CUDA_GEMM,
        (RACE,),
    ),
    Bug(
        "linear: 16-byte loads whatever the stride",
        GEMM_CU,
        ".inputs_aligned = k % 8 == 0 && rows_aligned(a.x) && aligned(a.weight),",
        ".inputs_aligned = k % 8 == 0 && aligned(a.x) && aligned(a.weight),",
        CUDA_GEMM,
        (MISALIGNED,),
    ),
    Bug(
        "tile_bf16: a step is loaded into the stage of the next",
        PIPELINE,
        "load(stages + next % kStages * kStageChunks, next);",
        "load(stages + (next + 1) % kStages * kStageChunks, next);",
        CUDA_GEMM,
        (RACE, COPY),
        TILE_BF16,
    ),
    Bug(
        "tile_bf16: k beyond the row is copied",
        FRAGMENT,
        "const bool inside = k < end;",
        "const bool inside = end > 0;",
        CUDA_GEMM,
        (BEYOND, WRONG),
        TILE_BF16,
    ),
    Bug(
        "tile_bf16: two warps own the same features",
        WORK,
        "warp_feature(threadIdx.x / kWarpSize / 2 * 32)",
        "warp_feature(threadIdx.x / kWarpSize % 2 * 32)",
        CUDA_GEMM,
        (RACE,),
        TILE_BF16,
    ),
    Bug(
        "tile_bf16: the last step's slice left out",
        TILE_BF16,
        "sums.end_step(step + 1 == steps);",
        "sums.end_step(false);",
        CUDA_GEMM,
        (WRONG,),
    ),
    Bug(
        "tile_f32: one tile for all steps",
        TILE_F32,
        "k0 += kTileK, stage ^= 1) {",
        "k0 += kTileK) {",
        CUDA_GEMM,
        (RACE,),
    ),
    Bug(
        "tile_f32: rows of shared memory off 16 bytes",
        TILE_F32,
        "constexpr int kPitch = kTile + 4;",
        "constexpr int kPitch = kTile + 1;",
        CUDA_GEMM,
        (MISALIGNED,),
    ),
    Bug(
        "tile_f32: features that are not there are written",
        OUTPUT,
        "if (token0 + token < p.m && feature0 + feature < p.n)",
        "if (token0 + token < p.m)",
        CUDA_GEMM,
        (BEYOND, RACE),
        TILE_F32,
    ),
    Bug(
        "tile_bf16: activated features that are not there are written",
        OUTPUT,
        "if (token < p.m && feature < p.n) store_activated",
        "if (token < p.m) store_activated",
        CUDA_GEMM,
        (BEYOND, RACE),
        TILE_BF16,
    ),
    Bug(
        "linear: a kernel activates before the bias",
        OUTPUT,
        "const float output = output_of<W>(p, sum, terms_of<W>(p, feature));",
        "const float output = output_of<W>(p, activate(p.activation, sum), terms_of<W>(p, feature));",
        CUDA_GEMM,
        (WRONG,),
        NARROW_BF16,
    ),
    Bug(
        "tile_f32: threads without a part of the next step skip the barrier",
        TILE_F32,
        "    __syncthreads();  // one is enough",
        "    if (k0 + part < p.k) __syncthreads();  // one is enough",
        CUDA_GEMM,
        (DEADLOCK, RACE, UNWRITTEN),
    ),
]
