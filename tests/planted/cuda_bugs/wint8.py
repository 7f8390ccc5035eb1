"""Bugs of the int8 products."""

from __future__ import annotations

from backends import BEYOND, MISALIGNED, RACE, WRONG
from bug import CUDA_WINT8, Bug

WINT8_FRAGMENT = "csrc/cuda/wint8/fragment.cuh"
LAUNCH, WINT8_CU = "csrc/cuda/wint8/launch.h", "csrc/cuda/wint8/wint8.cu"
NARROW, NARROW_UNIT = "csrc/cuda/wint8/narrow_kernel.cuh", "csrc/cuda/wint8/narrow_bf16.cu"
PIPELINE = "csrc/cuda/gemm/pipeline.cuh"
TILE, TILE_UNIT = "csrc/cuda/wint8/tile_kernel.cuh", "csrc/cuda/wint8/tile_bf16.cu"

BUGS = [
    Bug(
        "wint8: the fourth weight of a word is the third",
        WINT8_FRAGMENT,
        "prmt(raised, 0, 0x4342)",
        "prmt(raised, 0, 0x4242)",
        CUDA_WINT8,
        (WRONG,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8: one byte of a word keeps its sign bit",
        WINT8_FRAGMENT,
        "weights ^ 0x80808080u",
        "weights ^ 0x00808080u",
        CUDA_WINT8,
        (WRONG,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8: widened weights are not scaled back",
        WINT8_FRAGMENT,
        "  terms.scale *= Weight::kUnit;\n",
        "",
        CUDA_WINT8,
        (WRONG,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8: 16-byte loads whatever in_features",
        LAUNCH,
        "k % load_k == 0 && rows_aligned",
        "k % (load_k / 2) == 0 && rows_aligned",
        CUDA_WINT8,
        (MISALIGNED,),
        WINT8_CU,
    ),
    Bug(
        "wint8: 16-byte loads whatever the weight's address",
        LAUNCH,
        "rows_aligned(a.x) && aligned(a.weight)",
        "rows_aligned(a.x)",
        CUDA_WINT8,
        (MISALIGNED,),
        WINT8_CU,
    ),
    Bug(
        "wint8: every bias taken as float32",
        "csrc/cuda/gemm/kernels.h",
        "a.bias && a.bias->dtype == DType::kF32",
        "a.bias.has_value()",
        CUDA_WINT8,
        (BEYOND, WRONG),
        WINT8_CU,
    ),
    Bug(
        "wint8 narrow: features that are not there are read",
        NARROW,
        "weight_end[f] = feature < p.n ? end : 0;",
        "weight_end[f] = end;",
        CUDA_WINT8,
        (BEYOND,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8 narrow: tokens that are not there are read",
        NARROW,
        "token + 8 * tile < p.m ? end : 0",
        "end",
        CUDA_WINT8,
        (BEYOND, WRONG),
        NARROW_UNIT,
    ),
    Bug(
        "wint8 narrow: a second slice in another's room",
        NARROW,
        "partial + slice * kTokens * kFeatures;",
        "partial + slice / 2 * kTokens * kFeatures;",
        CUDA_WINT8,
        (RACE,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8 narrow: the second chunk of x is the first",
        NARROW,
        "x[s][t][c] = x_of(t, k + 8 * c)",
        "x[s][t][c] = x_of(t, k)",
        CUDA_WINT8,
        (WRONG,),
        NARROW_UNIT,
    ),
    Bug(
        "wint8 tile: chunks of x are looked for where they are not",
        TILE,
        "x[place_of<kXChunks>(row, first + 1)]",
        "x[row * kXChunks + first + 1]",
        CUDA_WINT8,
        (WRONG,),
        TILE_UNIT,
    ),
    Bug(
        "wint8 tile: sums of a slice go on into the next",
        PIPELINE,
        "          acc[r][c][i] = 0.f;\n",
        "",
        CUDA_WINT8,
        (WRONG,),
        TILE_UNIT,
    ),
    Bug(
        "wint8 tile: rows that end within a step are read on",
        TILE,
        "source + (inside ? Weight::row_bytes(from) : 0), inside ? 16 : 0);",
        "source + Weight::row_bytes(from), 16);",
        CUDA_WINT8,
        (BEYOND, WRONG),
        TILE_UNIT,
    ),
]
