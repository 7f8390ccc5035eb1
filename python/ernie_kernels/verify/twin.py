"""The twin of a float64 model: the same rows below its own, which round where the engine rounds."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ernie_kernels.verify import formulas
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix


@dataclass(frozen=True, slots=True)
class Twin:
    """Where activations are bfloat16 it ``exists``; else rows are those of the exact model alone."""

    exists: bool

    @property
    def copies(self) -> int:
        return 2 if self.exists else 1

    def exact(self, x: Array) -> Array:
        """The first model's rows."""
        return x[: len(x) // self.copies]

    def of(self, rows: Array) -> Array:
        """``rows`` for both, the twin's rounded."""
        return self.rounded(np.concatenate([rows] * self.copies))

    def rounded(self, x: Array, first: int | None = None) -> Array:
        """``x``, the twin's rows rounded in place: from ``first`` on, or half of them."""
        if self.exists:
            rows = x[len(x) // 2 if first is None else first :]
            rows[...] = rows.astype(np.float32).astype(ml_dtypes.bfloat16)
        return x

    def linear(self, x: Array, matrix: Matrix, first: int | None = None) -> Array:
        return self.rounded(formulas.linear(x, matrix.weight, matrix.bias), first)
