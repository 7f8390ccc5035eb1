"""What the ops of the vision tower mean, in numpy and float64; beside ``reference``, whose ``check``
takes the magnitudes.
"""

from __future__ import annotations

import math

import numpy as np

from reference import Array, angles, f64, frequencies, interleaved, linear


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array]:
    """Returns the result and the magnitude of its terms: of the difference to the mean, of the bias.

    The mean is itself a sum, of which float32 knows as much as its largest terms allow.
    """
    x64 = f64(x)
    centred = x64 - x64.mean(-1, keepdims=True)
    factor = f64(weight) / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    size = np.abs(x64).mean(-1, keepdims=True) + np.abs(centred)
    expected = centred * factor + f64(bias)
    return expected, size * np.abs(factor) + np.abs(f64(bias))


erfc = np.vectorize(math.erfc, otypes=[np.float64])  # numpy has none


def gelu(x: Array) -> tuple[Array, Array]:
    """The result and its magnitude: its terms, and what a rounded x**2 / 2 makes of them."""
    x = f64(x)
    with np.errstate(invalid="ignore"):
        expected = 0.5 * x * erfc(-x / math.sqrt(2))
        return expected, np.abs(expected) * (1 + np.where(x < 0, x**2 / 16, 0))


def quick_gelu(x: Array) -> tuple[Array, Array]:
    """As ``gelu``, with what 1.702 and its product with x, both rounded, make of the result."""
    x = f64(x)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x / (1 + np.exp(-1.702 * x))
        return expected, np.abs(expected) * (1 + np.where(x < 0, -2 * 1.702 * x / 16, 0))


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}
# Neither is anywhere steeper.
ACTIVATION_SLOPE = 1.2


def activated_linear(
    x: Array, weight: Array, bias: Array | None, activation: str
) -> tuple[Array, Array]:
    sums, size = linear(x, weight, bias)
    expected, magnitude = ACTIVATIONS[activation](sums)
    return expected, magnitude + ACTIVATION_SLOPE * size


def mrope_table(positions: Array, head_dim: int, theta: float, freq_allocation: int) -> Array:
    pairs = head_dim // 2
    t, h, w = positions
    rows = [h, w] * pairs
    rows = rows[: pairs - freq_allocation] + [t] * freq_allocation
    return interleaved(angles(np.stack(rows, axis=1), frequencies(pairs, theta)))


def rope_2d_table(positions: Array, head_dim: int, theta: float) -> Array:
    frequency = frequencies(head_dim // 4, theta)
    angle = np.concatenate([angles(row[:, None], frequency) for row in positions], axis=1)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def rope_2d(x: Array, table: Array) -> tuple[Array, Array]:
    first, second = np.split(f64(x), 2, axis=-1)
    cos, sin = np.split(table[:, None], 2, axis=-1)
    expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return expected, np.tile(np.abs(first) + np.abs(second), 2)
