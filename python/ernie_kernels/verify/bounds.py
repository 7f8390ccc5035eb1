"""How far a kernel's result may be from float64, element by element.

Every bound has the form of the tests of the ops: with ``u`` half the distance of neighbouring values
of the result's dtype (2^-24 for float32, 2^-8 for bfloat16),

    abs(y - y64) <= u abs(y64) + c 2^-24 S + (what stated roundings in between may add)

where ``S`` bounds the sum of the absolute values of the K terms that make the element, and
``c = max(16, 2 sqrt(K))``: what any order of summation in float32 may add. Nothing in it is
fitted to a model, and nothing accumulates: every part is judged by what the engine gave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ernie_kernels.verify import formulas
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
FLOAT32 = 2.0**-24
UNDERFLOW = 2.0**-120  # absolute: far below any value that counts
MAX_SILU_SLOPE = 1.1
# A quantised value is off by up to half a step, of which a twelfth of its square is the variance. A
# sum of K such errors is taken for random, and may be this many standard deviations.
QUANTIZATION_DEVIATIONS = 8.0


@dataclass(frozen=True, slots=True)
class Expected:
    """A result in float64 and how far another may be from it."""

    value: Array
    bound: Array


def summation(num_terms: int) -> float:
    return max(16.0, 2.0 * math.sqrt(num_terms)) * FLOAT32


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds for activations of one dtype.

    Attributes:
        dtype: ``"float32"`` or ``"bfloat16"``.
        weight_bits: of matrices quantised while loading, per output row; None: exact.
        activation_bits: of what these matrices multiply, a scale per row or finer; None: exact.
    """

    dtype: str
    weight_bits: int | None = None
    activation_bits: int | None = None

    @property
    def unit(self) -> float:
        return UNIT[self.dtype]

    def sum(self, x: Array, y: Array) -> Expected:
        value = x + y
        magnitude = np.abs(x) + np.abs(y)
        return Expected(value, self.unit * np.abs(value) + summation(2) * magnitude + UNDERFLOW)

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Expected:
        """The quotient is rounded before the weight multiplies, and the product again."""
        value = formulas.rms_norm(x, weight, eps)
        relative = 2 * self.unit + summation(x.shape[-1])
        return Expected(value, relative * np.abs(value) + UNDERFLOW)

    def linear(self, x: Array, matrix: Matrix, *, dtype: str | None = None) -> Expected:
        """``dtype``: of the result where it is not that of the activations."""
        value = formulas.linear(x, matrix.weight, matrix.bias)
        unit = self.unit if dtype is None else UNIT[dtype]
        length = np.sqrt((x**2).sum(-1, keepdims=True))
        # By Cauchy and Schwarz no less than the sum of abs(x) abs(w), and one product less.
        magnitude = length * np.sqrt((matrix.weight**2).sum(-1))
        if matrix.bias is not None:
            magnitude = magnitude + np.abs(matrix.bias)
        bound = unit * np.abs(value) + summation(x.shape[-1]) * magnitude + UNDERFLOW
        return Expected(value, bound + self._quantization(x, matrix.weight, value))

    def _quantization(self, x: Array, weight: Array, value: Array) -> Array | float:
        if self.weight_bits is None:
            return 0.0
        variance = _step(weight, self.weight_bits) ** 2 * (x**2).sum(-1, keepdims=True)
        if self.activation_bits is not None:
            steps = _step(x, self.activation_bits)[:, None]
            variance = variance + steps**2 * (weight**2).sum(-1)
        # A scale kept in bfloat16 moves all of a row alike.
        return QUANTIZATION_DEVIATIONS * np.sqrt(variance / 12) + UNIT["bfloat16"] * np.abs(value)

    def table(self, rows: Array) -> Expected:
        """A lookup copies: only a quantised table may differ."""
        if self.weight_bits is None:
            return Expected(rows, np.zeros_like(rows))
        half_step = 0.5 * _step(rows, self.weight_bits)[:, None]
        return Expected(rows, half_step + 2 * UNIT["bfloat16"] * np.abs(rows))

    def rotated(self, projected: Expected, angles: Array) -> Expected:
        """RoPE of a projection that was itself rounded."""
        value = formulas.rotate(projected.value, angles)
        size = _turned(np.abs(projected.value), angles)
        error = _turned(projected.bound, angles)
        bound = error + self.unit * np.abs(value) + 16 * FLOAT32 * size + UNDERFLOW
        return Expected(value, bound)

    def attention(
        self, query: Array, keys: Array, values: Array, *, causal: bool = True
    ) -> Expected:
        """One sequence. With bfloat16 a kernel may round the probabilities."""
        p, sizes = formulas.probabilities(query, keys, causal=causal)
        value = formulas.attend(p, values)
        summed = formulas.attend(p, np.abs(values))
        magnitude = (1 + sizes.max(-1).T[..., None]) * summed
        bound = self.unit * np.abs(value) + summation(len(keys)) * magnitude + UNDERFLOW
        if self.dtype == "bfloat16":
            bound = bound + self.unit * summed
        return Expected(value, bound)

    def gated(self, x: Array, gate_proj: Matrix, up_proj: Matrix) -> Expected:
        """``silu(gate(x)) * up(x)``; the projections may have been rounded."""
        gate, up = self.linear(x, gate_proj), self.linear(x, up_proj)
        opened = formulas.silu(gate.value)
        value = opened * up.value
        error = np.abs(opened) * up.bound + MAX_SILU_SLOPE * gate.bound * (
            np.abs(up.value) + up.bound
        )
        computed = 16 * FLOAT32 * (1 + np.abs(gate.value)) + self.unit
        return Expected(value, error + computed * np.abs(value) + UNDERFLOW)


def _step(rows: Array, bits: int) -> Array:
    """Between neighbouring quantised values of each row, scaled by its largest."""
    return np.abs(rows).max(-1) / (2 ** (bits - 1) - 1)


def _turned(size: Array, angles: Array) -> Array:
    """The largest that a rotation can make of errors of these sizes."""
    cos, sin = np.abs(np.cos(angles))[:, None], np.abs(np.sin(angles))[:, None]
    even, odd = size[..., 0::2], size[..., 1::2]
    turned = np.empty_like(size)
    turned[..., 0::2] = even * cos + odd * sin
    turned[..., 1::2] = odd * cos + even * sin
    return turned
