"""Bugs of norm."""

from __future__ import annotations

from bug import NORM, Bug

BUGS = [
    Bug(
        "norm: weight before the rounding",
        "csrc/cpu/norm.isa.cpp",
        "const F32 normed = round_to(mul(load_n(x + j, m), scale), x);",
        "const F32 normed = mul(load_n(x + j, m), scale);",
        NORM,
    ),
    Bug(
        "norm: eps outside the root",
        "csrc/cpu/norm.isa.cpp",
        "set(1.f / sqrtf(sum_sq / static_cast<float>(n) + eps))",
        "set(1.f / (sqrtf(sum_sq / static_cast<float>(n)) + eps))",
        NORM,
    ),
    Bug(
        "norm: tail left out of the sum",
        "csrc/cpu/norm.isa.cpp",
        "for (int64_t k = 0; k < m; ++k) total += terms[k];",
        "for (int64_t k = 0; k + 1 < m; ++k) total += terms[k];",
        NORM,
    ),
    Bug(
        "norm: zeros beyond a row's end counted in the variance",
        "csrc/cpu/norm.isa.cpp",
        "for (int64_t k = 0; k < m; ++k) total += terms[k];",
        "for (int64_t k = 0; k < W; ++k) total += terms[k];",
        NORM,
    ),
    Bug(
        "norm: variance about zero",
        "csrc/cpu/norm.isa.cpp",
        "const F32 centred = sub(v, mean);",
        "const F32 centred = v;",
        NORM,
    ),
    Bug(
        "norm: residual and bias may overlap",
        "csrc/ops/norm.cpp",
        'check.disjoint("residual", a.residual, "bias", a.bias);',
        "(void)0;",
        NORM,
    ),
    Bug(
        "norm: rows taken as contiguous",
        "csrc/cpu/norm.cpp",
        "return t.ptr<T>() + row * t.step(0);",
        "return t.ptr<T>() + row * t.size(1);",
        NORM,
    ),
    Bug(
        "norm: overlap of out and x not refused",
        "csrc/ops/norm.cpp",
        'check.disjoint_or_same_rows("out", a.out, "x", a.x);',
        "(void)0;",
        NORM,
    ),
]
