"""Checks of linear layers, their packing and their quantisation."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor
from ernie_kernels.doctor.case import Case, Pairs, exactly, float64
from ernie_kernels.verify import vision_bounds
from ernie_kernels.verify.bounds import FLOAT32, Bounds, Expected
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix


def linear(case: Case) -> Pairs:
    x, weight, bias = case.random(5, 37), case.random(19, 37), case.random(19)
    out = case.timed(lambda: ops.linear(case.floats(x), case.floats(weight), case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(weight, bias))
    for name in vision_bounds.ACTIVATIONS:
        given = case.floats(x), case.floats(weight), case.floats(bias)
        activated = ops.linear(*given, activation=name, dtype="float32")
        yield activated, vision_bounds.activated(Bounds("float32"), x, Matrix(weight, bias), name)


def linear_pack(case: Case) -> Pairs:
    """What the packed weight multiplies, and that it still holds every element."""
    x, matrix = case.random(5, 37), Matrix(case.random(19, 37), None)
    packed = case.timed(lambda: ops.linear_pack(case.floats(matrix.weight)))
    yield ops.linear(case.floats(x), packed), case.bounds.linear(x, matrix)
    rows = np.arange(19)[::-1].copy()
    yield ops.embedding(rows, packed), exactly(matrix.weight[rows])


def linear_silu_and_mul(case: Case) -> Pairs:
    x, gate, up = case.random(5, 37), case.random(13, 37), case.random(13, 37)
    weight = case.floats(np.concatenate([gate, up]))
    out = case.timed(lambda: ops.linear_silu_and_mul(case.floats(x), weight))
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint8_weight(case: Case, out_features: int) -> tuple[Array, Array]:
    """Values and scales, both exact in every dtype."""
    values = case.rng.integers(-127, 128, (out_features, 37)).astype(np.float64)
    return values, np.exp2(case.rng.integers(-8, -5, out_features)).astype(np.float64)


def wint8_linear(case: Case) -> Pairs:
    x, bias = case.random(5, 37), case.random(19)
    values, scale = wint8_weight(case, 19)
    weight = case.integers(values, "int8"), case.integers(scale, "float32")
    scaled = values * scale[:, None]
    out = case.timed(lambda: ops.wint8_linear(case.floats(x), *weight, case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(scaled, bias))
    if case.device == "cpu":
        whole = np.rint(x * 20)
        whole[:, 3] = 127  # then the integers are their own int8
        out = ops.wint8_linear(case.floats(whole), *weight, int8_activations=True)
        yield out, case.bounds.linear(whole, Matrix(scaled, None))


def wint8_linear_silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 37)
    values, scale = wint8_weight(case, 26)
    weight = case.integers(values, "int8"), case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint8_linear_silu_and_mul(case.floats(x), *weight))
    gate, up = np.split(values * scale[:, None], 2)
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint8_quantize(case: Case) -> Pairs:
    weight = case.random(19, 37)
    values, scale = case.timed(lambda: ops.wint8_quantize(case.floats(weight)))
    largest = np.abs(weight).max(axis=1)
    wanted = weight / largest[:, None] * 127
    yield values, Expected(wanted, np.full_like(wanted, 0.5 + 1e-4))
    yield scale, Expected(largest / 127, (case.bounds.unit + FLOAT32) * largest / 127)


def wint8_quantize_and_pack(case: Case) -> Pairs:
    """The same as by the two ops."""
    weight, rows = case.floats(case.random(19, 37)), np.arange(19)[::-1].copy()
    packed, scale = case.timed(lambda: ops.wint8_quantize_and_pack(weight))
    values, same_scale = (float64(tensor) for tensor in ops.wint8_quantize(weight))
    ones = case.integers(np.ones(19), "float32")
    yield ops.embedding(rows, packed, scale=ones), exactly(values[rows])
    yield scale, exactly(same_scale)


def wint8_pack(case: Case) -> Pairs:
    """That the packed weight still holds every element."""
    (values, scale), rows = wint8_weight(case, 19), np.arange(19)[::-1].copy()
    packed = case.timed(lambda: ops.wint8_pack(case.integers(values, "int8")))
    looked_up = ops.embedding(rows, packed, scale=case.integers(scale, "float32"))
    yield looked_up, exactly((values * scale[:, None])[rows])


def wint4_weight(case: Case, out_features: int) -> tuple[Array, Tensor, Array]:
    """Values, the same two in a byte, and scales: all exact in every dtype."""
    values = case.rng.integers(-7, 8, (out_features, 37)).astype(np.float64)
    halves = np.pad(values, ((0, 0), (0, 1))).astype(np.int64) & 15
    pairs = case.integers(halves[:, ::2] | halves[:, 1::2] << 4, "uint8")
    return values, pairs, np.exp2(case.rng.integers(-8, -5, out_features)).astype(np.float64)


def wint4_linear(case: Case) -> Pairs:
    x, bias = case.random(5, 37), case.random(19)
    values, pairs, scale = wint4_weight(case, 19)
    weight = pairs, case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint4_linear(case.floats(x), *weight, case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(values * scale[:, None], bias))


def wint4_linear_silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 37)
    values, pairs, scale = wint4_weight(case, 26)
    weight = pairs, case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint4_linear_silu_and_mul(case.floats(x), *weight))
    gate, up = np.split(values * scale[:, None], 2)
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint4_quantize(case: Case) -> Pairs:
    weight = case.random(19, 37)
    pairs, scale = case.timed(lambda: ops.wint4_quantize(case.floats(weight)))
    halves = pairs.numpy()[..., None] >> np.array([0, 4]) & 15
    values = ((halves.reshape(19, 38) + 8) % 16 - 8).astype(np.float64)
    largest = np.abs(weight).max(axis=1)
    wanted = np.pad(weight / largest[:, None] * 7, ((0, 0), (0, 1)))
    yield values, Expected(wanted, np.full_like(wanted, 0.5 + 1e-5))
    yield scale, Expected(largest / 7, (case.bounds.unit + FLOAT32) * largest / 7)


def wint4_quantize_and_pack(case: Case) -> Pairs:
    """The same as by the two ops."""
    weight = case.floats(case.random(19, 37))
    packed, scale = case.timed(lambda: ops.wint4_quantize_and_pack(weight))
    pairs, same_scale = ops.wint4_quantize(weight)
    yield packed.tensor, exactly(float64(ops.wint4_pack(pairs, 37).tensor))
    yield scale, exactly(float64(same_scale))


def wint4_pack(case: Case) -> Pairs:
    """That the packed weight still holds every element."""
    values, pairs, scale = wint4_weight(case, 19)
    packed = case.timed(lambda: ops.wint4_pack(pairs, 37))
    one_hot = case.integers(np.eye(37), "float32")
    product = ops.wint4_linear(one_hot, packed, case.integers(scale, "float32"))
    yield product, exactly((values * scale[:, None]).T)
