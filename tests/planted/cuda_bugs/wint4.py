"""Bugs of the 4-bit products and of tables of 4 bits; what they share with int8 is in wint8.py."""

from __future__ import annotations

from backends import BEYOND, MISALIGNED, WRONG
from bug import CUDA_WINT4, EMBEDDING, Bug

FOLDER = "csrc/cuda/wint4/"
WINT4_CU, NARROW, TILE = FOLDER + "wint4.cu", FOLDER + "narrow_bf16.cu", FOLDER + "tile_bf16.cu"

BUGS = [
    Bug(
        "wint4: 16-byte loads where bytes of int8 would be whole",
        "csrc/cuda/wint8/launch.h",
        "wint_plan::step_of(a.weight.dtype) / 4",
        "16",
        CUDA_WINT4,
        (MISALIGNED,),
        WINT4_CU,
    ),
    Bug(
        "wint4 narrow: the second half of a lane's weights meets the first's x",
        "csrc/cuda/wint8/narrow_kernel.cuh",
        "first + s * kStepK + 16 * i",
        "first + s * kStepK",
        CUDA_WINT4,
        (WRONG,),
        NARROW,
    ),
    Bug(
        "wint4 tile: the second half of a lane's weights meets the first's x",
        "csrc/cuda/wint8/tile_kernel.cuh",
        "2 * (kWides * at.chunk + i)",
        "2 * (kWides * at.chunk)",
        CUDA_WINT4,
        (WRONG,),
        TILE,
    ),
    Bug(
        "wint4 with float32 x: nibbles without a sign",
        "csrc/cuda/nibbles.cuh",
        "^ 8) - 8)",
        "))",
        CUDA_WINT4,
        (WRONG,),
        "csrc/cuda/gemm/narrow_f32.cu",
    ),
    Bug(
        "wint4 with float32 x: rows as long as their columns",
        "csrc/cuda/gemm/output.cuh",
        "feature * elements_of<W>(p.k)",
        "int64_t{feature} * p.k",
        CUDA_WINT4,
        (BEYOND, WRONG),
        "csrc/cuda/gemm/tile_f32.cu",
    ),
    Bug(
        "wint4 quantize: what follows a row of odd length is read",
        "csrc/cuda/wint8/quantize_kernel.cuh",
        "2 * j + 1 < columns ? value(2 * j + 1) : 0",
        "value(2 * j + 1)",
        CUDA_WINT4,
        (BEYOND, WRONG),
        WINT4_CU,
    ),
    Bug(
        "wint4 quantize: rows with infinity rounded as others",
        "csrc/cuda/wint8/quantize_kernel.cuh",
        "bits != 0 && bits < kInfinityBits",
        "bits != 0",
        CUDA_WINT4,
        (WRONG,),
        WINT4_CU,
    ),
    Bug(
        "embedding: rows of 4 bits half a byte short",
        "csrc/cuda/embedding.cu",
        "id * elements_of<From>(hidden_size) +",
        "id * hidden_size * elements_of<From>(2) / 2 +",
        EMBEDDING,
        (WRONG, MISALIGNED),
    ),
    Bug(
        "embedding: words of 4 bits read at any address",
        "csrc/cuda/embedding.cu",
        "reinterpret_cast<uintptr_t>(row) % sizeof(uint32_t) == 0",
        "true",
        EMBEDDING,
        (MISALIGNED,),
    ),
]
