"""Bugs of norm."""

from __future__ import annotations

from backends import BEYOND, DIVERGENCE, MISALIGNED, RACE, WRONG
from bug import GRID_LOOPS, NORM, Bug

COMMON = "csrc/cuda/common.cuh"
VECTOR = "csrc/cuda/vector.cuh"
NORM_CU = "csrc/cuda/norm.cu"

BUGS = [
    Bug(
        "norm: block_sum leaves out the last warp",
        COMMON,
        "for (int i = 0; i < kWarps; ++i) v += partial[i];",
        "for (int i = 0; i < kWarps - 1; ++i) v += partial[i];",
        NORM,
        (WRONG,),
        NORM_CU,
    ),
    Bug(
        "norm: warp_sum over half a warp",
        COMMON,
        "  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)\n    v += __shfl",
        "  for (int offset = kWarpSize / 4; offset > 0; offset /= 2)\n    v += __shfl",
        NORM,
        (WRONG,),
        NORM_CU,
    ),
    Bug(
        "norm: every lane writes its warp's sum",
        COMMON,
        "  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = v;",
        "  partial[threadIdx.x / kWarpSize] = v;",
        NORM,
        (RACE,),
        NORM_CU,
    ),
    Bug(
        "norm: mask of the shuffle names half of the warp",
        COMMON,
        "    v += __shfl_xor_sync(0xffffffffu, v, offset);\n  return v;",
        "    v += __shfl_xor_sync(0x0000ffffu, v, offset);\n  return v;",
        NORM,
        (DIVERGENCE,),
        NORM_CU,
    ),
    Bug(
        "norm: loads beyond the row's end",
        NORM_CU,
        "if (const int64_t i = first + p * step; i < n) held[p] = load_vec",
        "if (const int64_t i = first + p * step; i >= 0) held[p] = load_vec",
        NORM,
        (BEYOND,),
    ),
    Bug(
        "norm: writes beyond the row's end",
        NORM_CU,
        "    if (i >= n) break;\n",
        "",
        NORM,
        (BEYOND,),
    ),
    Bug(
        "norm: 16-byte loads whatever the address",
        NORM_CU,
        "if (a.hidden_size % Vec<T>::kSize == 0 && aligned16(out, x, a.weight, a.bias, residual))",
        "if (a.hidden_size % Vec<T>::kSize == 0)",
        NORM,
        (MISALIGNED,),
    ),
    Bug(
        "norm: steps of blocks where blocks have several rows",
        NORM_CU,
        "t += int64_t{gridDim.x} * kRowsPerBlock) {",
        "t += int64_t{gridDim.x}) {",
        GRID_LOOPS,
        (RACE,),
    ),
    Bug(
        "norm: end of a long row from x, not from the residual",
        NORM_CU,
        "const T* again = kAdd ? residual : x;",
        "const T* again = x;",
        NORM,
        (WRONG,),
    ),
    Bug(
        "norm: a kernel counts zeros beyond a row's end in the variance",
        NORM_CU,
        "if (j < left) sum = fmaf(f, f, sum);",
        "sum = fmaf(f, f, sum);",
        NORM,
        (WRONG,),
    ),
    Bug(
        "norm: the residual is added once more",
        NORM_CU,
        "for_each_vec<kRowThreads, kWide, kAdd && !kIsLayer>(",
        "for_each_vec<kRowThreads, kWide, kAdd>(",
        NORM,
        (WRONG,),
    ),
    Bug(
        "vector: tail of a store not predicated",
        VECTOR,
        "if (j < left) p[j] = from_float<T>(get(v, j));",
        "p[j] = from_float<T>(get(v, j));",
        NORM,
        (BEYOND, RACE),
        NORM_CU,
    ),
]
