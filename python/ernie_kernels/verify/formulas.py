"""What the ops of a decoder mean, in numpy and float64: slow, plain, no engine.

Rows are tokens; matrices are ``[out_features, in_features]``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    return x @ weight.T if bias is None else x @ weight.T + bias


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(800) is infinite and silu(-800) is 0
        return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    # By erfc, which keeps what 1 + erf would cancel below zero; numpy has neither.
    return 0.5 * x * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))


def quick_gelu(x: Array) -> Array:
    return silu(1.702 * x) / 1.702


def rope_angles(positions: npt.NDArray[np.int64], head_dim: int, theta: float) -> Array:
    """Radians of every pair, ``[num_tokens, head_dim / 2]``.

    Frequency and angle are rounded to float32: the architecture is defined so, and at position
    100,000 a float64 angle would differ by a hundredth of a radian.
    """
    exponent = -2.0 * np.arange(head_dim // 2) / head_dim
    frequency = (float(theta) ** exponent).astype(np.float32)
    return (positions.astype(np.float32)[:, None] * frequency).astype(np.float64)


def rope_angles_3d(
    positions: npt.NDArray[np.int64], head_dim: int, theta: float, num_time_pairs: int
) -> Array:
    """The same of positions ``[3, num_tokens]`` in time, rows and columns.

    The last pairs, the slowest, turn with time; of the others the even ones with the row and the odd
    ones with the column.
    """
    of_time, of_row, of_column = (rope_angles(each, head_dim, theta) for each in positions)
    angles = of_time.copy()
    num_others = head_dim // 2 - num_time_pairs
    angles[:, 0:num_others:2] = of_row[:, 0:num_others:2]
    angles[:, 1:num_others:2] = of_column[:, 1:num_others:2]
    return angles


def rope_angles_2d(places: npt.NDArray[np.int64], head_dim: int, theta: float) -> Array:
    """Of patches at ``[num_patches, 2]`` (row, column): half of the pairs turn with each.

    For :func:`rotate_halves`; frequencies are those of a head of half the size.
    """
    return np.concatenate([rope_angles(each, head_dim // 2, theta) for each in places.T], axis=1)


def rotate(x: Array, angles: Array) -> Array:
    """Turn the pairs ``(x[2i], x[2i + 1])`` of ``[num_tokens, num_heads, head_dim]``."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., 0::2] = even * cos - odd * sin
    turned[..., 1::2] = odd * cos + even * sin
    return turned


def rotate_halves(x: Array, angles: Array) -> Array:
    """Turn the pairs ``(x[i], x[head_dim / 2 + i])`` of ``[num_tokens, num_heads, head_dim]``."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def probabilities(query: Array, keys: Array, *, causal: bool = True) -> tuple[Array, Array]:
    """Attention of one sequence, whose last tokens the queries are.

    Args:
        query: ``[num_queries, num_heads, head_dim]``.
        keys: ``[length, num_kv_heads, head_dim]``; head ``h`` reads ``h // (heads / kv_heads)``.
        causal: a query sees the keys up to its own position; else all.

    Returns:
        Probabilities ``[num_heads, num_queries, length]``, and beside each the size of its score's
        terms, ``scale * sum abs(q) abs(k)``.
    """
    (num_queries, num_heads, head_dim), (length, num_kv_heads, _) = query.shape, keys.shape
    q = query.swapaxes(0, 1)
    k = np.repeat(keys, num_heads // num_kv_heads, axis=1).transpose(1, 2, 0)
    scale = head_dim**-0.5
    scores = scale * (q @ k)
    sizes = scale * (np.abs(q) @ np.abs(k))
    if causal:
        future = np.triu(np.ones((num_queries, length), bool), length - num_queries + 1)
        scores[:, future] = -np.inf
        sizes[:, future] = 0.0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True), sizes


def attend(p: Array, values: Array) -> Array:
    """Probabilities times values ``[length, num_kv_heads, head_dim]``, heads before rows again."""
    v = np.repeat(values, p.shape[0] // values.shape[1], axis=1).swapaxes(0, 1)
    return (p @ v).swapaxes(0, 1)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
