"""Bugs of the experts' products."""

from __future__ import annotations

from backends import BEYOND, RACE, WRONG
from bug import CUDA_GROUPED, Bug

FOLDER = "csrc/cuda/grouped_gemm/"
CORE = "csrc/ops/grouped_gemm_core.h"
WORK = FOLDER + "work.cuh"
WEIGHT = FOLDER + "weight.cuh"
LAUNCHER = FOLDER + "grouped_gemm.cu"
# Of the units that include a header, the one that is compiled again.
BF16 = FOLDER + "narrow_bf16.cu"
TILE_BF16 = FOLDER + "tile_bf16.cu"
WINT4 = FOLDER + "narrow_wint4.cu"
TILE_WINT4 = FOLDER + "tile_wint4.cu"

BUGS = [
    Bug(
        "grouped: offsets not held against the rows",
        CORE,
        "end < num_rows ? end : num_rows",
        "end",
        CUDA_GROUPED,
        (BEYOND, WRONG),
        BF16,
    ),
    Bug(
        "grouped: each tile begins with its expert",
        CORE,
        "return {rows.begin + skipped,",
        "return {rows.begin,",
        CUDA_GROUPED,
        (RACE, WRONG),
        BF16,
    ),
    Bug(
        "grouped: an expert's last tile is a whole one",
        CORE,
        "left < tile_rows ? left : tile_rows",
        "tile_rows",
        CUDA_GROUPED,
        (RACE, BEYOND, WRONG),
        BF16,
    ),
    Bug(
        "grouped: a grid without room for tiles that are cut short",
        CORE,
        "(num_rows + std::min(num_rows, num_experts) * (tile_rows - 1)) / tile_rows",
        "(num_rows + 0 * num_experts + tile_rows - 1) / tile_rows",
        CUDA_GROUPED,
        (WRONG,),
        LAUNCHER,
    ),
    Bug(
        "grouped: up rows first",
        CORE,
        "local % 16 < 8 ? output : outputs + output",
        "local % 16 >= 8 ? output : outputs + output",
        CUDA_GROUPED,
        (WRONG,),
        TILE_BF16,
    ),
    Bug(
        "grouped: sources not held against the tokens",
        WORK,
        "source_row(p.source_rows[row], p.num_source_rows)",
        "p.source_rows[row]",
        CUDA_GROUPED,
        (BEYOND, WRONG),
        BF16,
    ),
    Bug(
        "grouped: every expert up to the tile's is found",
        WORK,
        "index < end && end - tiles <= index",
        "end - tiles <= index",
        CUDA_GROUPED,
        (RACE, WRONG),
        BF16,
    ),
    Bug(
        "grouped: the second round of experts counts from zero",
        WORK,
        "    end += earlier;\n",
        "",
        CUDA_GROUPED,
        (WRONG, RACE),
        BF16,
    ),
    Bug(
        "grouped: the tiles of one warp's experts are left out",
        WORK,
        "if (w < warp) end += counts[w];",
        "if (w < warp - 1) end += counts[w];",
        CUDA_GROUPED,
        (WRONG, RACE),
        BF16,
    ),
    Bug(
        "grouped: the scales of the first expert for all",
        WORK,
        "p.scale[expert * rows_of_weight + row]",
        "p.scale[row]",
        CUDA_GROUPED,
        (WRONG,),
        WINT4,
    ),
    Bug(
        "grouped wint4: upper nibbles without a sign",
        WEIGHT,
        "0x00800008u",
        "0x00000008u",
        CUDA_GROUPED,
        (WRONG,),
        TILE_WINT4,
    ),
]
