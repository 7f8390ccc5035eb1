from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
import reference_vision
from ernie_kernels import ops

import reference
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 9])
@pytest.mark.parametrize("intermediate_size", [1, 3, 16, 31, 1000, 4097, 9000])
def test_silu_and_mul_matches_reference(device, rng, dtype, num_tokens, intermediate_size):
    x = reference.random(rng, (num_tokens, 2 * intermediate_size), dtype, scale=4.0)
    out = poisoned((num_tokens, intermediate_size), dtype, device)

    assert ops.silu_and_mul(on(x, device), out=out) is out

    expected = reference.silu_and_mul(x)
    reference.check(out, expected, magnitude=np.abs(expected))


def order(x: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 values as integers that count neighbours; -0 and 0 are one."""
    u = x.view(np.uint16).astype(np.int64)
    return np.where(u < 0x8000, u, 0x8000 - u)


def test_every_bfloat16_gate_is_within_one_ulp(device):
    gate = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(BF16)
    x = np.concatenate([gate, np.ones_like(gate)])[None]

    out = ops.silu_and_mul(on(x, device)).numpy()[0]

    expected = reference.silu_and_mul(x)[0]
    np.testing.assert_array_equal(np.isnan(reference.f64(out)), np.isnan(expected))
    finite = ~np.isnan(expected)
    rounded = expected.astype(np.float32).astype(BF16)
    assert np.abs(order(out[finite]) - order(rounded[finite])).max() <= 1


def test_float32_gates_far_below_zero_keep_their_precision(device):
    gate = -np.linspace(0, 110, 4001, dtype=np.float32)
    x = np.concatenate([gate, np.ones_like(gate)])[None]
    out = reference.f64(ops.silu_and_mul(on(x, device)))
    expected = reference.silu_and_mul(x)
    # Half a denormal step on top of the usual bound.
    assert np.all(np.abs(out - expected) <= 16 * 2.0**-24 * np.abs(expected) + 2.0**-150)


def test_an_element_does_not_depend_on_its_place(device, rng):
    x = reference.random(rng, (7, 2 * 4500), BF16, scale=4.0)
    together = ops.silu_and_mul(on(x, device)).numpy()
    alone = ops.silu_and_mul(on(x[3:4].copy(), device)).numpy()
    np.testing.assert_array_equal(alone.view(np.uint16)[0], together.view(np.uint16)[3])
    column = np.ascontiguousarray(x[:, [4499, 8999]])
    np.testing.assert_array_equal(
        ops.silu_and_mul(on(column, device)).numpy().view(np.uint16)[:, 0],
        together.view(np.uint16)[:, 4499],
    )


def test_silu_and_mul_reads_and_writes_strided_rows(device, rng):
    x = ek.from_numpy(reference.random(rng, (5, 40), F32), device)
    wide = ek.from_numpy(np.zeros((5, 20), np.float32), device)
    ops.silu_and_mul(x[:, 4:36], out=wide[:, 3:19])
    expected = np.zeros((5, 20))
    expected[:, 3:19] = reference.silu_and_mul(x.numpy()[:, 4:36])
    reference.check(wide, expected, magnitude=np.abs(expected))


BY_NAME = pytest.mark.parametrize("name", reference_vision.ACTIVATIONS)


@BY_NAME
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 9])
@pytest.mark.parametrize("size", [1, 3, 16, 31, 1000, 4097, 9000])
def test_activation_matches_reference(device, rng, name, dtype, num_tokens, size):
    x = reference.random(rng, (num_tokens, size), dtype, scale=3.0)
    out = poisoned(x.shape, dtype, device)

    assert getattr(ops, name)(on(x, device), out=out) is out

    expected, magnitude = reference_vision.ACTIVATIONS[name](x)
    reference.check(out, expected, magnitude=magnitude)


@BY_NAME
def test_every_bfloat16_is_within_one_ulp(device, name):
    x = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(BF16)[None]

    out = getattr(ops, name)(on(x, device)).numpy()

    expected, _ = reference_vision.ACTIVATIONS[name](x)
    # As torch's float64: NaN for minus infinity, which the formula multiplies by zero.
    infinite = np.isinf(reference.f64(x))
    assert np.isnan(expected[infinite & (reference.f64(x) < 0)]).all()
    np.testing.assert_array_equal(np.isnan(reference.f64(out)), np.isnan(expected))
    finite = ~np.isnan(expected)
    rounded = expected.astype(np.float32).astype(BF16)
    assert np.abs(order(out[finite]) - order(rounded[finite])).max() <= 1


@BY_NAME
def test_float32_values_far_below_zero_keep_their_precision(device, name):
    x = -np.linspace(0, 70 if name == "quick_gelu" else 16, 4001, dtype=np.float32)[None]
    out = reference.f64(getattr(ops, name)(on(x, device)))
    expected, magnitude = reference_vision.ACTIVATIONS[name](x)
    assert np.all(np.abs(out - expected) <= 16 * 2.0**-24 * magnitude + 2.0**-150)


@BY_NAME
def test_an_activation_works_in_place_and_in_strided_rows(device, rng, name):
    before = reference.random(rng, (5, 60), BF16)
    wide = ek.from_numpy(before, device)
    x = wide[:, 3:51]
    assert getattr(ops, name)(x, out=x) is x
    alone = getattr(ops, name)(on(before[:, 50:51].copy(), device)).numpy()
    after = wide.numpy()
    np.testing.assert_array_equal(after[:, 50:51].view(np.uint16), alone.view(np.uint16))
    expected, magnitude = reference_vision.ACTIVATIONS[name](before[:, 3:51])
    reference.check(np.ascontiguousarray(after[:, 3:51]), expected, magnitude=magnitude)
    after[:, 3:51] = before[:, 3:51]
    np.testing.assert_array_equal(after.view(np.uint16), before.view(np.uint16))


@BY_NAME
def test_an_activation_writes_off_16_bytes(device, rng, name):
    x = reference.random(rng, (5, 48), BF16)
    wide = ek.from_numpy(np.zeros((5, 64), BF16), device)
    getattr(ops, name)(on(x, device), out=wide[:, 1:49])
    expected = np.zeros((5, 64), BF16)
    expected[:, 1:49] = getattr(ops, name)(on(x, device)).numpy()
    np.testing.assert_array_equal(wide.numpy().view(np.uint16), expected.view(np.uint16))


@BY_NAME
def test_an_activation_names_the_wrong_argument(name):
    op, x = getattr(ops, name), np.ones((4, 8), np.float32)
    with pytest.raises(ek.ArgumentError, match=f"^{name}: out: expected memory apart from x"):
        op(x[:-1], out=x[1:])
    with pytest.raises(ek.ArgumentError, match=rf"^{name}: out: expected shape .*size=8"):
        op(x, out=x[:, :7].copy())
    with pytest.raises(ek.ArgumentError, match=f"^{name}: x: expected 2 dimensions"):
        op(x[0])
    assert op(np.ones((0, 8), np.float32)).shape == (0, 8)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_silu_and_mul_of_nothing_is_empty(device, shape):
    out = ops.silu_and_mul(on(np.empty(shape, np.float32), device))
    assert out.shape == (shape[0], shape[1] // 2)


def test_silu_and_mul_wants_gate_and_up_apart_from_out():
    with pytest.raises(ek.ArgumentError, match="x: expected an even number of columns"):
        ops.silu_and_mul(np.ones((2, 7), np.float32))
    x = np.ones((2, 8), np.float32)
    with pytest.raises(ek.ArgumentError, match="out: expected memory apart from x"):
        ops.silu_and_mul(x, out=x[:, :4])
