"""What the ops of expert layers mean, in numpy: ``reference.py`` has the rest.

Routing, sorting and the weighted sum are defined to the bit; the products are float64.
"""

from __future__ import annotations

import math

import numpy as np

from reference import UNDERFLOW, UNIT, Array, f64, linear


def moe_softmax(logits: Array) -> tuple[Array, Array]:
    """The softmax of rows, and how much float32 may miss it, relative to each element.

    The argument of the exponential is rounded: half a unit of it is that much of the result.
    """
    below = f64(logits) - f64(logits).max(-1, keepdims=True)
    weight = np.exp(below)
    p = weight / weight.sum(-1, keepdims=True)
    terms = max(16.0, 2.0 * logits.shape[-1] ** 0.5)
    spread = (p * -below).sum(-1, keepdims=True)  # of the sum, by the errors of its terms
    return p, (terms + 2 * -below + 2 * spread) * 2.0**-24


def moe_exp(x: Array) -> Array:
    """csrc/ops/moe_core.h in numpy's float32, operation by operation."""
    f = np.float32
    bounded = np.maximum(x, f(-104))
    n = (bounded * f(1.44269504088896341) + f(12582912)) - f(12582912)
    r = (bounded - n * f(0.693145751953125)) - n * f(1.42860682030941723212e-6)
    p = np.full_like(r, f(1.3926192586e-3))
    for c in (8.3631862556e-3, 4.1666554563e-2, 1.6666576946e-1, 0.5):
        p = p * r + f(c)
    p = ((r * r) * p + r) + f(1)
    half = np.floor(n / 2)
    return (p * np.exp2(half).astype(f)) * np.exp2(n - half).astype(f)


def moe_sum(values: Array) -> Array:
    """Of each row, in 32 partial sums that are folded by halves: float32."""
    partial = np.zeros((len(values), 32), np.float32)
    for begin in range(0, values.shape[1], 32):
        part = values[:, begin : begin + 32]
        partial[:, : part.shape[1]] += part
    while partial.shape[1] > 1:
        half = partial.shape[1] // 2
        partial = partial[:, :half] + partial[:, half:]
    return partial


def moe_route(
    logits: Array, bias: Array, top_k: int, norm_min: float = 1e-12
) -> tuple[Array, Array, Array]:
    """Weights, ids and flags, to the bit. ``bias`` may have a row for each token."""
    flags = ~(np.isfinite(logits).all(1) & np.isfinite(bias).all(-1))
    usable = np.where(flags[:, None], np.float32(0), logits)
    with np.errstate(over="ignore", under="ignore"):
        p = moe_exp(usable - usable.max(1, keepdims=True))
        p = p / moe_sum(p)
        scores = np.where(flags[:, None], np.float32(0), p + bias)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].astype(np.int32)
        chosen = np.take_along_axis(p, ids, 1)
        weights = chosen / np.maximum(moe_sum(chosen), np.float32(norm_min))
    ids[flags] = np.arange(top_k)
    weights[flags] = np.nan
    return weights, ids, flags.astype(np.uint8)


def moe_route_of_banks(
    logits: Array, bias: Array, top_k: int, banks: Array, norm_min: float = 1e-12
) -> tuple[Array, Array, Array]:
    """The same for tokens of several banks: ``bias`` has a row for each."""
    num_experts = bias.shape[1]
    of_bank = banks[:, None].astype(np.int32) * num_experts
    own = np.take_along_axis(logits, of_bank + np.arange(num_experts), 1)
    weights, ids, flags = moe_route(own, bias[banks], top_k, norm_min)
    return weights, ids + of_bank, flags


def moe_sort(topk_ids: Array, num_experts: int) -> tuple[Array, Array, Array]:
    """expert_offsets, inverse, source_rows."""
    flat = topk_ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    inverse = np.empty(flat.size, np.int32)
    inverse[order] = np.arange(flat.size, dtype=np.int32)
    offsets = np.searchsorted(flat[order], np.arange(num_experts + 1)).astype(np.int64)
    tokens = (order // max(topk_ids.shape[1], 1)).astype(np.int32)
    return offsets, inverse.reshape(topk_ids.shape), tokens


def moe_combine(
    x: Array, inverse: Array, topk_weights: Array, shared: Array | None
) -> tuple[Array, Array]:
    rows, weights = f64(x)[inverse], f64(topk_weights)[..., None]  # [T, k, H], [T, k, 1]
    expected, magnitude = (weights * rows).sum(1), np.abs(weights * rows).sum(1)
    if shared is not None:
        expected, magnitude = expected + f64(shared), magnitude + np.abs(f64(shared))
    return expected, magnitude


def moe_combine_float32(
    x: Array, inverse: Array, topk_weights: Array, shared: Array | None
) -> Array:
    """The same to the bit: products and sums one by one, in the order that the op defines."""
    rows = x.astype(np.float32)[inverse]
    total = np.zeros((len(inverse), x.shape[1]), np.float32)
    for j in range(inverse.shape[1]):
        total = total + topk_weights[:, j : j + 1] * rows[:, j]
    if shared is not None:
        total = total + shared.astype(np.float32)
    return total.astype(x.dtype)


def grouped_linear(x: Array, weights: Array, offsets: Array) -> tuple[Array, Array]:
    """Sorted rows ``x`` times the matrices ``[E, N, K]`` of their experts, in float64."""
    expected = np.zeros((len(x), weights.shape[1]))
    magnitude = np.zeros_like(expected)
    for e in np.flatnonzero(np.diff(offsets)):
        rows = slice(offsets[e], offsets[e + 1])
        expected[rows], magnitude[rows] = linear(x[rows], weights[e], None)
    return expected, magnitude


def fused_moe(
    x: Array,
    topk_weights: Array,
    topk_ids: Array,
    w_gate_up: Array,
    w_down: Array,
    shared: Array | None,
) -> tuple[Array, Array]:
    """In float64 without any rounding, and what the stated ones and float32 sums may make of it.

    The second is the magnitude that ``check`` wants: what may be wrong, in units of its second term.
    """
    unit, float32 = UNIT[x.dtype], 2.0**-24
    expected, error = np.zeros(x.shape), np.zeros(x.shape)
    for t, j in np.ndindex(topk_ids.shape):
        gate_up, down = f64(w_gate_up[topk_ids[t, j]]), f64(w_down[topk_ids[t, j]])
        c_up, c_down = (max(16.0, 2.0 * math.sqrt(w.shape[1])) * float32 for w in (gate_up, down))
        s, s_sum = gate_up @ f64(x[t]), np.abs(gate_up) @ np.abs(f64(x[t]))
        gate, up = np.split(s, 2)
        gate_error, up_error = np.split(unit * np.abs(s) + c_up * s_sum, 2)
        silu = gate / (1 + np.exp(-gate))
        gated = silu * up
        # silu is nowhere steeper than 1.1.
        gated_error = (
            1.1 * gate_error * (np.abs(up) + up_error)
            + np.abs(silu) * up_error
            + (unit + 16 * float32) * np.abs(gated)
        )
        y = down @ gated
        y_error = (
            np.abs(down) @ (gated_error + c_down * np.abs(gated)) + unit * np.abs(y) + UNDERFLOW
        )
        weight = float(topk_weights[t, j])
        expected[t] += weight * y
        error[t] += abs(weight) * (y_error + 16 * float32 * np.abs(y))
    if shared is not None:
        expected += f64(shared)
        error += 16 * float32 * np.abs(f64(shared))
    return expected, error / (16 * float32)
