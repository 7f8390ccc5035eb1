"""Checks of the mixture of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_kernels import ops
from ernie_kernels.doctor.case import NUMPY_DTYPES, TOP_K, Case, Pairs, exactly, float64
from ernie_kernels.verify.bounds import UNDERFLOW, Expected, summation
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix


def moe_route(case: Case) -> Pairs:
    logits, bias = case.random(5, 7), 0.5 * case.random(7)
    weights, ids = case.timed(lambda: ops.moe_route(case.floats(logits), case.floats(bias), TOP_K))
    yield from routed(weights, ids, logits, bias)
    # Of two banks, where a token chooses among the experts of one.
    both, biases, banks = case.random(5, 14), 0.5 * case.random(2, 7), np.array([0, 1, 1, 0, 1])
    weights, ids = ops.moe_route(
        case.floats(both),
        case.floats(biases),
        TOP_K,
        banks=case.integers(banks, "uint8"),
        num_banks=2,
    )
    first = 7 * banks[:, None]
    own = np.take_along_axis(both, first + np.arange(7), 1)
    yield from routed(weights, float64(ids) - first, own, biases[banks])


def routed(weights: Any, ids: Any, logits: Array, bias: Array) -> Pairs:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.argsort(-(p + bias), axis=-1, kind="stable")[:, :TOP_K]
    yield ids, exactly(chosen.astype(np.float64))
    value = np.take_along_axis(p, chosen, -1)
    value /= value.sum(-1, keepdims=True)
    yield weights, Expected(value, 4 * summation(7) * value + UNDERFLOW)


def chosen_experts() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of 5 tokens, with experts that nobody chooses, and the order of all choices by expert."""
    ids = np.array([[6, 0, 3], [0, 6, 2], [3, 2, 0], [6, 3, 5], [0, 2, 6]])
    return ids, np.argsort(ids.ravel(), kind="stable")


def offsets_of(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(ids.ravel(), minlength=7))])


def moe_sort(case: Case) -> Pairs:
    ids, order = chosen_experts()
    offsets, inverse, source_rows = case.timed(lambda: ops.moe_sort(case.integers(ids, "int32"), 7))
    yield offsets, exactly(offsets_of(ids).astype(np.float64))
    yield inverse, exactly(np.argsort(order).reshape(ids.shape).astype(np.float64))
    yield source_rows, exactly((order // TOP_K).astype(np.float64))


def moe_dispatch(case: Case) -> Pairs:
    (ids, order), x = chosen_experts(), case.random(5, 37)
    permuted, offsets, inverse = case.timed(
        lambda: ops.moe_dispatch(case.floats(x), case.integers(ids, "int32"), 7)
    )
    yield permuted, exactly(x[order // TOP_K])
    yield offsets, exactly(offsets_of(ids).astype(np.float64))
    yield inverse, exactly(np.argsort(order).reshape(ids.shape).astype(np.float64))


def moe_combine(case: Case) -> Pairs:
    (ids, order), x, shared = chosen_experts(), case.random(15, 37), case.random(5, 37)
    inverse = np.argsort(order).reshape(ids.shape)
    weights = np.abs(case.random(5, TOP_K))
    out = case.timed(
        lambda: ops.moe_combine(
            case.floats(x),
            case.integers(inverse, "int32"),
            case.integers(weights, "float32"),
            shared=case.floats(shared),
        )
    )
    terms = weights[..., None] * x[inverse]
    value = terms.sum(1) + shared
    magnitude = np.abs(terms).sum(1) + np.abs(shared)
    bound = case.bounds.unit * np.abs(value) + summation(TOP_K + 1) * magnitude + UNDERFLOW
    yield out, Expected(value, bound)


def experts_of(case: Case, rows: int, columns: int) -> tuple[Array, ops.ExpertWeights]:
    """Matrices of 7 experts, set one at a time."""
    matrices = case.random(7, rows, columns) / 8
    experts = ops.expert_weights(7, rows, columns, dtype=case.dtype, device=case.device)
    for index, matrix in enumerate(matrices.astype(NUMPY_DTYPES[case.dtype])):
        ops.expert_weights_set(experts, index, matrix)
    return matrices, experts


def in_banks(experts: ops.ExpertWeights) -> list[ops.ExpertWeights]:
    """Four experts, and then three."""
    sizes = (experts.out_features, experts.in_features)
    parts = (experts.weight[:4], experts.weight[4:])
    return [ops.ExpertWeights(part, len(part), *sizes) for part in parts]


def grouped_linear(case: Case) -> Pairs:
    """Experts with no row, with one and with several, which are gathered."""
    (ids, order), x = chosen_experts(), case.random(5, 37)
    matrices, experts = experts_of(case, 19, 37)
    offsets, rows = case.integers(offsets_of(ids), "int64"), order // TOP_K
    source_rows = case.integers(rows, "int32")
    given = case.floats(x)
    out = case.timed(lambda: ops.grouped_linear(given, experts, offsets, source_rows=source_rows))
    result = float64(out)
    for place, expert in enumerate(np.sort(ids.ravel())):
        row = x[rows[place], None]
        yield result[place, None], case.bounds.linear(row, Matrix(matrices[expert], None))


def grouped_linear_silu_and_mul(case: Case) -> Pairs:
    (ids, order), x = chosen_experts(), case.random(5, 37)
    matrices, experts = experts_of(case, 26, 37)
    offsets, rows = case.integers(offsets_of(ids), "int64"), order // TOP_K
    given = case.floats(x[rows])
    out = case.timed(lambda: ops.grouped_linear_silu_and_mul(given, experts, offsets))
    result = float64(out)
    for place, expert in enumerate(np.sort(ids.ravel())):
        gate, up = np.split(matrices[expert], 2)
        expected = case.bounds.gated(x[rows[place], None], Matrix(gate, None), Matrix(up, None))
        yield result[place, None], expected


def fused_moe(case: Case) -> Pairs:
    (ids, _), x, shared = chosen_experts(), case.random(5, 37), case.random(5, 37)
    matrices, gate_up = experts_of(case, 26, 37)
    down_matrices, down = experts_of(case, 37, 13)
    weights = np.abs(case.random(5, TOP_K))
    rows = (case.floats(x), case.integers(weights, "float32"), case.integers(ids, "int32"))
    given = case.floats(shared)
    out = case.timed(lambda: ops.fused_moe(*rows, gate_up, down, shared=given))
    value, bound, magnitude = shared.copy(), np.zeros_like(x), np.abs(shared)
    for t, j in np.ndindex(ids.shape):
        gate, up = np.split(matrices[ids[t, j]], 2)
        matrix = down_matrices[ids[t, j]]
        gated = case.bounds.gated(x[t, None], Matrix(gate, None), Matrix(up, None))
        y = case.bounds.linear(gated.value, Matrix(matrix, None))
        value[t] += weights[t, j] * y.value[0]
        bound[t] += weights[t, j] * (y.bound + 1.01 * gated.bound @ np.abs(matrix).T)[0]
        magnitude[t] += weights[t, j] * np.abs(y.value[0])
    bound += case.bounds.unit * np.abs(value) + summation(TOP_K + 1) * magnitude + UNDERFLOW
    yield out, Expected(value, bound)
    out = ops.fused_moe(*rows, in_banks(gate_up), in_banks(down), shared=given)
    yield out, Expected(value, bound)
