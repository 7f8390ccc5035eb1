from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from reference import BF16, F32, on, poisoned

# x, weight, out
DTYPES = [(F32, F32, F32), (F32, BF16, F32), (BF16, BF16, BF16), (BF16, BF16, F32)]
# num_tokens, in_features, out_features: around the tiles (6 rows, 16 x 8 outputs), the blocks
# (96 rows, 1024 deep) and the pairs of bfloat16 weights.
SHAPES = [
    (1, 1, 1),
    (1, 7, 5),
    (2, 16, 16),
    (3, 33, 17),
    (5, 64, 127),
    (6, 65, 128),
    (7, 511, 129),
    (13, 513, 31),
    (97, 40, 200),
    (100, 1030, 65),
    (9, 2051, 33),
    (1, 2048, 300),
]


def ids(dtypes) -> str:
    return "-".join(map(str, dtypes))


@pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_reference(device, rng, shape, dtypes, packed):
    num_tokens, in_features, out_features = shape
    x = reference.random(rng, (num_tokens, in_features), dtypes[0])
    weight = reference.random(rng, (out_features, in_features), dtypes[1])
    bias = reference.random(rng, (out_features,), dtypes[1]) if out_features % 2 else None
    if packed and device != "cpu":
        pytest.skip("packed weights are the CPU's")
    given = ops.linear_pack(weight) if packed else on(weight, device)
    out = poisoned((num_tokens, out_features), dtypes[2], device)

    ops.linear(on(x, device), given, None if bias is None else on(bias, device), out=out)

    expected, magnitude = reference.linear(x, weight, bias)
    reference.check(out, expected, magnitude=magnitude, terms=in_features)


@pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])
@pytest.mark.parametrize("dtypes", [d for d in DTYPES if d[0] == d[2]], ids=ids)
@pytest.mark.parametrize(
    "shape",
    [(1, 7, 1), (1, 64, 300), (2, 33, 16), (5, 40, 63), (6, 70, 64), (7, 64, 65), (97, 1030, 100)],
    ids=str,
)
def test_linear_silu_and_mul_equals_the_two_ops(device, rng, shape, dtypes, packed):
    num_tokens, in_features, intermediate_size = shape
    x = on(reference.random(rng, (num_tokens, in_features), dtypes[0]), device)
    weight = reference.random(rng, (2 * intermediate_size, in_features), dtypes[1], 0.3)
    bias = None
    if intermediate_size % 2:
        bias = on(reference.random(rng, (2 * intermediate_size,), dtypes[1]), device)
    if packed and device != "cpu":
        pytest.skip("packed weights are the CPU's")
    given = ops.linear_pack(weight) if packed else on(weight, device)
    expected = ops.silu_and_mul(ops.linear(x, given, bias)).numpy()
    np.testing.assert_array_equal(ops.linear_silu_and_mul(x, given, bias).numpy(), expected)
    wide = poisoned((num_tokens, intermediate_size + 3), dtypes[2], device)
    gate_up = poisoned((num_tokens, 2 * intermediate_size), dtypes[2], device)
    ops.linear_silu_and_mul(x, given, bias, out=wide[:, 1 : intermediate_size + 1], gate_up=gate_up)
    np.testing.assert_array_equal(wide.numpy()[:, 1 : intermediate_size + 1], expected)
    assert np.isnan(wide.numpy()[:, 0].astype(F32)).all()
    assert np.isnan(wide.numpy()[:, intermediate_size + 1 :].astype(F32)).all()


def test_linear_silu_and_mul_wants_pairs(rng):
    x, weight = reference.random(rng, (2, 8), F32), reference.random(rng, (7, 8), F32)
    for given in (weight, ops.linear_pack(weight)):
        with pytest.raises(ek.ArgumentError, match="weight: expected an even number of out_featur"):
            ops.linear_silu_and_mul(x, given)
    with pytest.raises(ek.ArgumentError, match="linear_silu_and_mul: x: expected in_features=8"):
        ops.linear_silu_and_mul(x[:, :5], ops.linear_pack(weight))


def test_packed_layout(rng):
    for dtype, group in ((F32, 1), (BF16, 2)):
        weight = reference.random(rng, (37, 21), dtype)
        packed = ops.linear_pack(weight)
        assert (packed.out_features, packed.in_features) == (37, 21)
        got = packed.tensor.numpy().reshape(3, -1, 16, group)
        want = np.zeros((48, got.shape[1] * group), np.float32)
        want[:37, :21] = weight
        want = want.reshape(3, 16, -1, group).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(got.astype(np.float32), want)


@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_row_depends_on_itself_alone(rng, dtypes):
    """Alone, in any batch, packed or not, on any number of threads: the same bits."""
    x = reference.random(rng, (131, 2100), dtypes[0])
    weight = reference.random(rng, (150, 2100), dtypes[1])
    packed = ops.linear_pack(weight)
    name = str(dtypes[2])
    whole = ops.linear(x, packed, dtype=name).numpy()
    np.testing.assert_array_equal(ops.linear(x, weight, dtype=name).numpy(), whole)
    for begin, end in [(0, 1), (5, 7), (3, 6), (90, 94), (7, 12), (60, 66), (20, 117), (130, 131)]:
        part = ops.linear(x[begin:end], packed, dtype=name).numpy()
        np.testing.assert_array_equal(part, whole[begin:end])
    before = ek.num_threads()
    try:
        for threads in (1, 2, 5):
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(ops.linear(x, packed, dtype=name).numpy(), whole)
    finally:
        ek.set_num_threads(before)


@pytest.mark.parametrize(
    ("begin", "end"), [(10, 40), (0, 32)]
)  # the first row off 16 bytes, and on
def test_strided_rows_and_outputs(device, rng, begin, end):
    x = ek.from_numpy(reference.random(rng, (9, 50), F32), device)
    weight = reference.random(rng, (20, end - begin), F32)
    wide = ek.from_numpy(np.full((9, 40), 7, np.float32), device)
    ops.linear(x[:, begin:end], on(weight, device), out=wide[:, 5:25])
    expected, magnitude = reference.linear(x.numpy()[:, begin:end], weight, None)
    reference.check(wide.numpy()[:, 5:25], expected, magnitude=magnitude, terms=end - begin)
    assert np.all(wide.numpy()[:, :5] == 7)
    assert np.all(wide.numpy()[:, 25:] == 7)


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
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"linear: {message}"):
            bad()
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
    packed = ops.linear_pack(np.ones((17, 6), BF16))
    with pytest.raises(ek.ArgumentError, match="x: expected in_features=6 columns"):
        ops.linear(np.ones((2, 5), BF16), packed)
    with pytest.raises(ek.ArgumentError, match="out: expected out_features=17 columns"):
        ops.linear(np.ones((2, 6), BF16), packed, out=np.ones((2, 20), BF16))
    with pytest.raises(ek.ArgumentError, match="linear_pack: weight: expected 2 dimensions"):
        ops.linear_pack(np.ones(3, np.float32))
