"""Bugs of penalties and sampling."""

from __future__ import annotations

from backends import BEYOND, DEADLOCK, DIVERGENCE, MISALIGNED, RACE, UNWRITTEN, WRONG
from bug import GRID_LOOPS, SAMPLING, Bug

SAMPLING_CU = "csrc/cuda/sampling.cu"

BUGS = [
    Bug(
        "sample: mask of the shuffle names half of the warp",
        SAMPLING_CU,
        "const uint64 other = __shfl_xor_sync(kAllLanes, best, offset);",
        "const uint64 other = __shfl_xor_sync(0x0000ffffu, best, offset);",
        SAMPLING,
        (DIVERGENCE,),
    ),
    Bug(
        "sample: prefix sum takes one lane too many",
        SAMPLING_CU,
        "if (static_cast<int>(threadIdx.x % kWarpSize) >= offset) v += below;",
        "v += below;",
        SAMPLING,
        (WRONG, UNWRITTEN),
    ),
    Bug(
        "sample: two bins take the end of the prefix",
        SAMPLING_CU,
        "if (before < wanted && wanted <= before + weight(bin)) {",
        "if (before <= wanted && wanted <= before + weight(bin)) {",
        SAMPLING,
        (RACE,),
    ),
    Bug(
        "sample: last bins not cleared",
        SAMPLING_CU,
        "for (int i = threadIdx.x; i < kBins; i += kThreads) {",
        "for (int i = threadIdx.x; i < kBins - kThreads; i += kThreads) {",
        SAMPLING,
        (UNWRITTEN,),
    ),
    Bug(
        "sample: candidates counted without an atomic",
        SAMPLING_CU,
        "atomicAdd(&bins.count[bin], 1u);",
        "bins.count[bin] += 1u;",
        SAMPLING,
        (RACE,),
    ),
    Bug(
        "sample: rows taken as aligned",
        SAMPLING_CU,
        "const int64_t to_aligned = -address & 3;",
        "const int64_t to_aligned = address & 0;",
        SAMPLING,
        (MISALIGNED,),
    ),
    Bug(
        "sample: one logit beyond the row",
        SAMPLING_CU,
        "if (const int64_t e = threadIdx.x; e < edges) {",
        "if (const int64_t e = threadIdx.x; e <= edges) {",
        SAMPLING,
        (BEYOND,),
    ),
    Bug(
        "sample: the barrier inside of one branch",
        SAMPLING_CU,
        "  if (lane == kWarpSize - 1) partial[warp] = sum;\n  __syncthreads();\n",
        "  if (lane == kWarpSize - 1) {\n    partial[warp] = sum;\n    __syncthreads();\n  }\n",
        SAMPLING,
        (DIVERGENCE, DEADLOCK, RACE, UNWRITTEN),
    ),
    Bug(
        "apply_penalties: prompt ids marked without an atomic",
        SAMPLING_CU,
        "atomicOr(&seen[id], 1u);",
        "seen[id] |= 1u;",
        SAMPLING,
        (RACE,),
    ),
    Bug(
        "apply_penalties: a barrier for each token",
        SAMPLING_CU,
        "        if (id < 0 || id >= extent) continue;\n",
        "        __syncthreads();\n        if (id < 0 || id >= extent) continue;\n",
        SAMPLING,
        (DIVERGENCE, DEADLOCK),
    ),
    Bug(
        "apply_penalties: ids not held against the tile",
        SAMPLING_CU,
        "        if (id < 0 || id >= extent) continue;\n",
        "",
        GRID_LOOPS,
        (BEYOND,),
    ),
]
