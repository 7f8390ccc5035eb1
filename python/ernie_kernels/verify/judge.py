"""Holds one part of the engine against its formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.engine_trace import EngineTrace
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.report import PartResult
from ernie_kernels.verify.stored_weights import Matrix


class Judge:
    """Judges parts by bounds that are all scaled alike.

    Args:
        scale: of all bounds; 1 is what the ops promise.
    """

    def __init__(self, trace: EngineTrace, bounds: Bounds, scale: float) -> None:
        self.trace = trace
        self.bounds = bounds
        self._scale = scale
        self._random = np.random.default_rng(7)

    def part(self, name: str, actual: Array, expected: Expected) -> PartResult:
        return PartResult.of(name, actual, expected, self._scale)

    def norm(
        self, name: str, norm: Any, weight: Array, eps: float, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        """A norm on its own input, and on one so small that eps counts."""
        yield self.part(name, actual, self.bounds.rms_norm(x, weight, eps))
        # Mean squares from a hundredth of eps to eps: there a wrong eps is as large as the result.
        scale = np.sqrt(eps * np.array([[0.01], [0.1], [1.0]]))
        small = self._random.standard_normal((3, len(weight))) * scale
        rounded = self.trace.tensor(small).numpy().astype(np.float64)
        expected = self.bounds.rms_norm(rounded, weight, eps)
        yield self.part(f"{name} near eps", self.trace.norm(norm, rounded), expected)

    def weights_of(
        self, layer: Any, matrices: Mapping[str, Matrix], bounds: Bounds | None = None
    ) -> Iterator[PartResult]:
        """Rows of ones and minus ones weigh every weight alike; sums are not rounded to 16 bits.

        Args:
            matrices: one below the other in ``layer``, by what the parts are to be called.
            bounds: where they are not those of the other layers.
        """
        bounds = bounds or self.bounds
        signs = self.signs(next(iter(matrices.values())).weight.shape[1])
        actual = self.trace.linear(layer, signs, dtype=bounds.dtype)
        first = 0
        for name, matrix in matrices.items():
            rows = slice(first, first + len(matrix.weight))
            first = rows.stop
            expected = bounds.linear(signs, matrix, dtype="float32")
            yield self.part(f"{name} weights", actual[:, rows], expected)

    def signs(self, width: int) -> Array:
        return self._random.choice((-1.0, 1.0), (2, width))
