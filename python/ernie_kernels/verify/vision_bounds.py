"""How far the vision tower's results may be from float64; see :mod:`.bounds`.

Its weights are never quantised.
"""

from __future__ import annotations

import numpy as np

from ernie_kernels.verify import formulas
from ernie_kernels.verify.bounds import FLOAT32, UNDERFLOW, Bounds, Expected, summation
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix

# Neither activation is anywhere steeper.
MAX_SLOPE = 1.2


def layer_norm(bounds: Bounds, x: Array, weight: Array, bias: Array, eps: float) -> Expected:
    """The mean is itself a sum, of which float32 knows as much as the largest terms allow."""
    value = formulas.layer_norm(x, weight, bias, eps)
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    size = np.abs(x).max(-1, keepdims=True) / deviation * np.abs(weight) + np.abs(bias)
    slack = 2 * summation(x.shape[-1]) * size
    return Expected(value, bounds.unit * np.abs(value) + slack + UNDERFLOW)


def gelu(bounds: Bounds, x: Array) -> Expected:
    value = formulas.gelu(x)
    return _computed(bounds, value, 16 + x**2)


def quick_gelu(bounds: Bounds, x: Array) -> Expected:
    value = formulas.quick_gelu(x)
    return _computed(bounds, value, 16 * (1 + np.abs(x)))


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


def activated(bounds: Bounds, x: Array, matrix: Matrix, name: str) -> Expected:
    """``activation(x @ w.T + b)``; the sum is float32, and the result is rounded once."""
    sums = bounds.linear(x, matrix, dtype="float32")
    result = ACTIVATIONS[name](bounds, sums.value)
    return Expected(result.value, result.bound + MAX_SLOPE * sums.bound)


def rotated_halves(bounds: Bounds, projected: Expected, angles: Array) -> Expected:
    """2-D RoPE of a projection that was itself rounded, ``[num_patches, num_heads, head_dim]``."""
    value = formulas.rotate_halves(projected.value, angles)
    error = _pair_sums(projected.bound)
    size = _pair_sums(np.abs(projected.value))
    return Expected(value, error + bounds.unit * np.abs(value) + 16 * FLOAT32 * size + UNDERFLOW)


def _computed(bounds: Bounds, value: Array, steps: Array) -> Expected:
    return Expected(value, (steps * FLOAT32 + bounds.unit) * np.abs(value) + UNDERFLOW)


def _pair_sums(size: Array) -> Array:
    """The largest that a rotation can make of a pair of these sizes."""
    first, second = np.split(size, 2, axis=-1)
    return np.concatenate([first + second] * 2, axis=-1)
