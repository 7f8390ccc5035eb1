from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
import reference_vision
from ernie_kernels import ops

import reference
from linear_cases import (
    COLUMNS,
    EITHER_PACKED,
    GATED_SHAPES,
    SHAPES,
    check_gated,
    check_packed_widths,
    check_pairs_are_asked_for,
    check_rows_are_independent,
    columns_written,
    given_bias,
    given_weight,
    ids,
    panels,
)
from reference import BF16, F32, on, poisoned

# x, weight, out
DTYPES = [(F32, F32, F32), (F32, BF16, F32), (BF16, BF16, BF16), (BF16, BF16, F32)]


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_reference(device, rng, shape, dtypes, packed):
    num_tokens, in_features, out_features = shape
    x = reference.random(rng, (num_tokens, in_features), dtypes[0])
    weight = reference.random(rng, (out_features, in_features), dtypes[1])
    bias = reference.random(rng, (out_features,), dtypes[1]) if out_features % 2 else None
    given = given_weight(weight, ops.linear_pack, packed, device)
    out = poisoned((num_tokens, out_features), dtypes[2], device)

    ops.linear(on(x, device), given, given_bias(bias, device), out=out)

    expected, magnitude = reference.linear(x, weight, bias)
    reference.check(out, expected, magnitude=magnitude, terms=in_features)


@EITHER_PACKED
@pytest.mark.parametrize("activation", reference_vision.ACTIVATIONS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", [(1, 37, 19), (5, 64, 48), (7, 130, 33), (70, 40, 70)], ids=str)
def test_linear_activates_its_sums(device, rng, shape, dtypes, activation, packed):
    num_tokens, in_features, out_features = shape
    x = reference.random(rng, (num_tokens, in_features), dtypes[0])
    weight = reference.random(rng, (out_features, in_features), dtypes[1], 0.3)
    bias = reference.random(rng, (out_features,), dtypes[1]) if out_features % 2 else None
    given = given_weight(weight, ops.linear_pack, packed, device)
    out = poisoned((num_tokens, out_features), dtypes[2], device)
    arguments = on(x, device), given, given_bias(bias, device)

    assert ops.linear(*arguments, activation=activation, out=out) is out

    expected, magnitude = reference_vision.activated_linear(x, weight, bias, activation)
    reference.check(out, expected, magnitude=magnitude, terms=in_features)
    if dtypes[2] == F32:  # then nothing is rounded before the op
        sums = ops.linear(*arguments, dtype="float32")
        np.testing.assert_array_equal(out.numpy(), getattr(ops, activation)(sums).numpy())


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", [d for d in DTYPES if d[0] == d[2]], ids=ids)
@pytest.mark.parametrize("shape", GATED_SHAPES, ids=str)
def test_linear_silu_and_mul_equals_the_two_ops(device, rng, shape, dtypes, packed):
    num_tokens, in_features, intermediate_size = shape
    x = on(reference.random(rng, (num_tokens, in_features), dtypes[0]), device)
    weight = reference.random(rng, (2 * intermediate_size, in_features), dtypes[1], 0.3)
    bias = None
    if intermediate_size % 2:
        bias = on(reference.random(rng, (2 * intermediate_size,), dtypes[1]), device)
    given = given_weight(weight, ops.linear_pack, packed, device)
    check_gated(
        lambda **out: ops.linear_silu_and_mul(x, given, bias, **out),
        ops.silu_and_mul(ops.linear(x, given, bias)).numpy(),
        dtypes[2],
        device,
    )


def test_linear_silu_and_mul_wants_pairs(rng):
    weight = reference.random(rng, (7, 8), F32)
    check_pairs_are_asked_for(
        ops.linear_pack, ops.linear_silu_and_mul, "linear_silu_and_mul", weight
    )


def test_packed_layout(rng):
    for dtype, group in ((F32, 1), (BF16, 2)):
        weight = reference.random(rng, (37, 21), dtype)
        packed = ops.linear_pack(weight)
        assert (packed.out_features, packed.in_features) == (37, 21)
        got = packed.tensor.numpy()
        assert got.shape == ((3, 21, 16) if dtype == F32 else (3, 11, 16, 2))
        np.testing.assert_array_equal(got.reshape(3, -1, 16, group), panels(weight, group))


@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_row_depends_on_itself_alone(rng, dtypes):
    """Alone, in any batch, packed or not, on any number of threads: the same bits."""
    x = reference.random(rng, (131, 2100), dtypes[0])
    weight = reference.random(rng, (150, 2100), dtypes[1])
    packed = ops.linear_pack(weight)

    def run(rows, given=packed):
        return ops.linear(rows, given, dtype=str(dtypes[2])).numpy()

    np.testing.assert_array_equal(run(x, weight), run(x))
    check_rows_are_independent(run, x)


@pytest.mark.parametrize(("begin", "end"), COLUMNS)
def test_strided_rows_and_outputs(device, rng, begin, end):
    x = ek.from_numpy(reference.random(rng, (9, 50), F32), device)
    weight = reference.random(rng, (20, end - begin), F32)
    got = columns_written(
        lambda out: ops.linear(x[:, begin:end], on(weight, device), out=out), device
    )
    expected, magnitude = reference.linear(x.numpy()[:, begin:end], weight, None)
    reference.check(got, expected, magnitude=magnitude, terms=end - begin)


def test_nan_beyond_an_odd_row_does_not_leak(rng):
    """in_features 5 makes the kernel read pairs: what lies behind the row must not count."""
    wide = np.full((3, 8), np.nan, np.float32)
    wide[:, :5] = 1
    weight = np.ones((4, 5), BF16)
    for dtype in (F32, BF16):
        # Whatever memory the kernel copies rows to is full of NaN now.
        ops.linear(np.full((3, 7), np.nan).astype(dtype), np.ones((4, 7), BF16))
        out = ops.linear(wide.astype(dtype)[:, :5], weight).numpy()
        assert np.all(out.astype(np.float32) == 5)


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)], ids=str)
def test_empty_extents(device, shape):
    num_tokens, in_features, out_features = shape
    x = np.ones((num_tokens, in_features), np.float32)
    weight = np.ones((out_features, in_features), np.float32)
    out = ops.linear(on(x, device), on(weight, device))
    assert out.shape == (num_tokens, out_features)
    assert np.all(out.numpy() == in_features)


def test_wrong_arguments_are_named(device):
    x, weight = np.ones((2, 8), np.float32), np.ones((4, 8), np.float32)
    for message, bad in [
        ("weight: expected shape", lambda: ops.linear(on(x, device), on(weight[:, :7].copy(), device))),
        ("x: expected 2 dimensions", lambda: ops.linear(on(x[0], device), on(weight, device))),
        ("bias: expected shape", lambda: ops.linear(on(x, device), on(weight, device), on(x[0], device))),
        ("x: expected float32, got bfloat16", lambda: ops.linear(on(x.astype(BF16), device), on(weight, device))),
        ("dtype: expected", lambda: ops.linear(on(x, device), on(weight, device), dtype="float7")),
        ("out: expected float32", lambda: ops.linear(on(x, device), on(weight, device), dtype="bfloat16")),
        ('activation: expected gelu, quick_gelu or None, got .relu.', lambda: ops.linear(on(x, device), on(weight, device), activation="relu")),
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"linear: {message}"):
            bad()
    with pytest.raises(TypeError, match="linear: activation: expected a string, got int"):
        ops.linear(on(x, device), on(weight, device), activation=1)
    with pytest.raises(TypeError, match="linear: x: expected a tensor"):
        ops.linear("x", weight)


class Exporter:
    """Nothing but DLPack: each export is an array of its own, alive only while its capsule is."""

    def __init__(self, make):
        self.make = make

    def __dlpack__(self, **kwargs):
        return self.make().__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return (1, 0)


def test_exported_operands_live_as_long_as_the_call():
    n = 1 << 20  # large enough for its memory to be unmapped when released
    bias = Exporter(lambda: np.full(n, 3, np.float32))
    out = ops.linear(np.ones((1, 1), F32), np.ones((n, 1), F32), bias).numpy()
    assert np.all(out == 4)


def test_any_exporter_can_be_packed():
    packed = ops.linear_pack(Exporter(lambda: np.ones((3, 5), np.float32)))
    assert (packed.out_features, packed.in_features) == (3, 5)


def test_packed_widths_are_checked():
    check_packed_widths(ops.linear_pack, ops.linear, BF16, BF16)
