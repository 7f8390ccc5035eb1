"""Experts of every kind, and rows of them, for test_grouped_gemm.py and its kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from reference import BF16, F32

# How the weights are kept, and the dtype of the matrices they are made of.
KINDS = {
    "float32": (None, F32),
    "bfloat16": (None, BF16),
    "wint8": ("wint8", BF16),
    "wint4": ("wint4", F32),
}
# Kinds of weights, and rows that go with them.
PAIRS = [
    ("float32", F32),
    *((kind, dtype) for kind in ("bfloat16", "wint8", "wint4") for dtype in (F32, BF16)),
]
EITHER_PAIR = pytest.mark.parametrize(
    ("kind", "x_dtype"), PAIRS, ids=[f"{kind}-{dtype}" for kind, dtype in PAIRS]
)

# Rows of each expert: around the tiles (6 rows), the blocks (96) and nothing; out_features and
# in_features around the panels (16 x 8), the blocks (1024 deep) and the groups of packed columns.
CASES = [
    ([1], 1, 1),
    ([0, 1, 0], 5, 7),
    ([2, 0, 1, 3], 16, 16),
    ([1] * 9, 33, 17),
    ([7, 6, 0, 5], 129, 64),
    ([0, 0, 13, 0], 130, 511),
    ([97, 0, 1], 40, 35),
    ([0, 200, 96, 100], 17, 66),
    ([1, 8], 20, 1030),
    ([3, 0, 7], 300, 2051),
    ([0, 0, 0], 8, 8),
]


def offsets_of(counts) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


class Experts:
    """``given`` as the ops take them, and ``matrices`` ``[E, N, K]`` in float64: what they mean."""

    def __init__(
        self, rng, kind: str, num_experts: int, rows: int, columns: int, *, pack=True, device="cpu"
    ):
        quantization, dtype = KINDS[kind]
        self.given = ops.expert_weights(
            num_experts, rows, columns, dtype=str(dtype), quantization=quantization, pack=pack,
            device=device,
        )  # fmt: skip
        self.matrices = np.empty((num_experts, rows, columns))
        self._kind = kind
        for e in range(num_experts):
            matrix = reference.random(rng, (rows, columns), dtype, 1 / np.sqrt(max(columns, 1)))
            ops.expert_weights_set(self.given, e, matrix)
            if quantization is None:
                self.matrices[e] = matrix
            else:
                quantize = getattr(reference, f"{quantization}_quantize")
                values, scale = quantize(matrix) if columns else (matrix, np.zeros(rows))
                self.matrices[e] = reference.f64(values) * reference.f64(scale)[:, None]

    def alone(self, e: int) -> Callable[..., ek.Tensor]:
        """The op of one expert, ``f(x)``, gated or not by its name's suffix."""
        matrix, experts = self.given.weight[e], self.given
        scale = () if experts.scale is None else (experts.scale[e],)
        if experts.is_packed:
            packed = {"wint8": ops.PackedWint8, "wint4": ops.PackedWint4}
            kind = packed.get(self._kind, ops.PackedWeight)
            matrix = kind(matrix, experts.out_features, experts.in_features)
        prefix = f"{self._kind}_" if self._kind.startswith("wint") else ""

        def run(x: Any, suffix: str = "", **kwargs: Any) -> ek.Tensor:
            return getattr(ops, f"{prefix}linear{suffix}")(x, matrix, *scale, **kwargs)

        return run


def row_by_row(experts: Experts, x: np.ndarray, offsets: np.ndarray, suffix: str, **mode):
    """What the op of each row's expert makes of the row alone."""
    width = experts.given.out_features // (2 if suffix else 1)
    out = np.empty((len(x), width), x.dtype)
    for e in range(len(offsets) - 1):
        run = experts.alone(e)
        for i in range(offsets[e], offsets[e + 1]):
            out[i] = run(x[i : i + 1], suffix, **mode).numpy()
    return out
