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
        "for (; i < n; ++i) sum_sq += load1(x + i) * load1(x + i);",
        "for (; i + 1 < n; ++i) sum_sq += load1(x + i) * load1(x + i);",
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
        'check.disjoint("out", out, "x", x);',
        "(void)0;",
        NORM,
    ),
]
