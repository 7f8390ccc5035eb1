"""Bugs of what all kernels stand on: vectors, tensors, threads."""

from __future__ import annotations

from bug import ACTIVATION, ARGUMENT_ERRORS, GEMM, PARALLEL, TENSOR, Bug

BUGS = [
    Bug(
        "simd: exp loses the low part of ln 2",
        "csrc/cpu/simd.isa.h",
        "r = fma(n, set(-1.42860682030941723212e-6f), r);",
        "",
        ACTIVATION,
    ),
    Bug(
        "simd: bfloat16 truncated instead of rounded",
        "csrc/cpu/simd.isa.h",
        "const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));",
        "const __m512i up = _mm512_add_epi32(u, _mm512_and_epi32(odd, _mm512_setzero_si512()));",
        GEMM,
    ),
    Bug(
        "tensor: a slice forgets its offset",
        "csrc/core/storage.cpp",
        "begin * t.view.stride[dim] * size_of(t.view.dtype)",
        "begin * t.view.stride[dim]",
        TENSOR,
    ),
    Bug(
        "tensor: size overflow not noticed",
        "csrc/core/storage.cpp",
        "if (extent > 0 && !checked_mul(nbytes, extent, &nbytes))",
        "if (extent > 0 && (nbytes *= extent) < -1)",
        TENSOR,
    ),
    Bug(
        "check: rows of other strides taken for the same",
        "csrc/core/check.cpp",
        "(a.size(0) <= 1 || a.step(0) == b.step(0))",
        "true",
        ARGUMENT_ERRORS,
    ),
    Bug(
        "check: a single row told from itself by its stride",
        "csrc/core/check.cpp",
        "(a.size(0) <= 1 || a.step(0) == b.step(0))",
        "a.step(0) == b.step(0)",
        ARGUMENT_ERRORS,
    ),
    Bug(
        "threads: last chunk lost",
        "csrc/core/parallel.cpp",
        "const int64_t chunks = ceil_div(count, grain);",
        "const int64_t chunks = count / grain;",
        [*PARALLEL, *GEMM],
    ),
]
