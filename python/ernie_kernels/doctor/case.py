"""Where an op is checked, and what a check of one gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.formulas import Array

NUMPY_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EPS = 1e-5
THETA = 500000.0
TOP_K = 3

Result = TypeVar("Result")


@dataclass(slots=True)
class Case:
    """Where and in which dtype an op is checked."""

    device: str
    dtype: str
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    seconds: float = 0.0  # of the op's call

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.dtype)

    def random(self, *shape: int) -> Array:
        """Values that the dtype holds exactly."""
        values = self.rng.standard_normal(shape).astype(np.float32)
        return values.astype(NUMPY_DTYPES[self.dtype]).astype(np.float64)

    def floats(self, values: Array) -> Tensor:
        rounded = values.astype(np.float32).astype(NUMPY_DTYPES[self.dtype])
        return from_numpy(rounded, self.device)

    def integers(self, values: Any, dtype: str) -> Tensor:
        return from_numpy(np.array(values, dtype), self.device)

    def timed(self, call: Callable[[], Result]) -> Result:
        begin = time.perf_counter()
        result = call()
        if isinstance(result, Tensor):
            result.numpy()  # a GPU's work is done when it has been fetched
        self.seconds = time.perf_counter() - begin
        return result


Pairs = Iterator[tuple[Any, Expected]]


def exactly(values: Array) -> Expected:
    return Expected(values, np.zeros_like(values))


def float64(tensor: Tensor) -> Array:
    return tensor.numpy().astype(np.float64)
