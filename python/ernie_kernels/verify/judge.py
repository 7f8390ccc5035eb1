"""Holds one part of the engine against its formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ernie_kernels.verify import vision_bounds
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
        given = self._near(eps, len(weight))
        expected = self.bounds.rms_norm(given, weight, eps)
        yield self.part(f"{name} near eps", self.trace.norm(norm, given), expected)

    def layer_norm(
        self,
        name: str,
        norm: Any,
        weight: Array,
        bias: Array,
        eps: float,
        x: Array,
        actual: Array,
    ) -> Iterator[PartResult]:
        """The same of a norm that takes the mean out first."""
        yield self.part(name, actual, vision_bounds.layer_norm(self.bounds, x, weight, bias, eps))
        given = self._near(eps, len(weight))
        expected = vision_bounds.layer_norm(self.bounds, given, weight, bias, eps)
        yield self.part(f"{name} near eps", self.trace.norm(norm, given), expected)

    def linear(
        self, name: str, layer: Any, matrix: Matrix, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        """All weights, and the layer's result on its own input."""
        yield from self.weights_of(layer, {name: matrix})
        yield self.part(name, actual, self.bounds.linear(x, matrix))

    def activated(
        self, name: str, layer: Any, matrix: Matrix, activation: str, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        """The same of a layer with an activation behind it, which lets sums above zero through."""
        signs = self.signs(matrix.weight.shape[1])
        signs = np.concatenate([signs, -signs])
        exact = replace(self.bounds, dtype="float32")
        expected = vision_bounds.activated(exact, signs, matrix, activation)
        yield self.part(f"{name} weights", self.trace.linear(layer, signs), expected)
        expected = vision_bounds.activated(self.bounds, x, matrix, activation)
        yield self.part(f"{name} and {activation}", actual, expected)

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

    def _near(self, eps: float, width: int) -> Array:
        """Mean squares from a hundredth of eps to eps: there a wrong eps is as large as the result."""
        scale = np.sqrt(eps * np.array([[0.01], [0.1], [1.0]]))
        small = self._random.standard_normal((3, width)) * scale
        return self.trace.tensor(small).numpy().astype(np.float64)
