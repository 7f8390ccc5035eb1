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
@pytest.mark.parametrize("num_tokens", [1, 7, 33])
@pytest.mark.parametrize("hidden_size", [1, 3, 15, 16, 17, 31, 1024, 2561])
def test_rms_norm_matches_reference(device, rng, dtype, num_tokens, hidden_size):
    x = reference.random(rng, (num_tokens, hidden_size), dtype)
    weight = reference.random(rng, (hidden_size,), dtype)
    out = poisoned(x.shape, dtype, device)

    assert ops.rms_norm(on(x, device), on(weight, device), eps=1e-5, out=out) is out

    expected, magnitude = reference.rms_norm(x, weight, 1e-5)
    reference.check(out, expected, magnitude=magnitude, terms=hidden_size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [5, 16, 100, 8200])  # a block holds up to 8192
def test_add_rms_norm_matches_reference(device, rng, dtype, hidden_size):
    x, residual = (reference.random(rng, (9, hidden_size), dtype) for _ in range(2))
    weight = reference.random(rng, (hidden_size,), dtype)
    stream = ek.from_numpy(residual, device)

    out, same = ops.add_rms_norm(on(x, device), stream, on(weight, device), eps=1e-6)

    assert same is stream
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(stream.numpy(), total)
    expected, magnitude = reference.rms_norm(total, weight, 1e-6)
    reference.check(out, expected, magnitude=magnitude, terms=hidden_size)


def test_rms_norm_rounds_to_bfloat16_before_the_weight(device):
    """One rounding less gives other bits for most of these elements."""
    x = np.linspace(-3, 3, 997, dtype=np.float32)[None].astype(BF16)
    weight = np.linspace(0.5, 1.5, 997, dtype=np.float32).astype(BF16)
    x64 = reference.f64(x)
    quotient = x64 / np.sqrt((x64**2).mean() + 1e-5)
    rounded_first = (quotient.astype(np.float32).astype(BF16).astype(np.float32)) * weight.astype(
        np.float32
    )
    rounded_once = quotient.astype(np.float32) * weight.astype(np.float32)

    out = ops.rms_norm(on(x, device), on(weight, device), eps=1e-5).numpy()

    same_as_first = np.mean(out == rounded_first.astype(BF16))
    same_as_once = np.mean(out == rounded_once.astype(BF16))
    assert same_as_first > 0.99
    assert same_as_once < 0.9


@pytest.mark.parametrize("begin", [8, 9])  # on 16 bytes, and off them
def test_rms_norm_reads_strided_rows_and_writes_in_place(device, rng, begin):
    wide = ek.from_numpy(reference.random(rng, (5, 64), F32), device)
    x = wide[:, begin : begin + 48]
    weight = np.ones(48, np.float32)
    before = wide.numpy().copy()
    expected, magnitude = reference.rms_norm(before[:, begin : begin + 48], weight, 1e-5)

    ops.rms_norm(x, on(weight, device), eps=1e-5, out=x)

    reference.check(
        x.numpy() if device == "cpu" else wide.numpy()[:, begin : begin + 48],
        expected,
        magnitude=magnitude,
        terms=48,
    )
    np.testing.assert_array_equal(wide.numpy()[:, :begin], before[:, :begin])
    np.testing.assert_array_equal(wide.numpy()[:, begin + 48 :], before[:, begin + 48 :])


def test_rms_norm_row_does_not_depend_on_the_batch(device, rng):
    x = reference.random(rng, (40, 1000), BF16)
    weight = on(reference.random(rng, (1000,), BF16), device)
    together = ops.rms_norm(on(x, device), weight).numpy()
    for i in (0, 1, 7, 8, 39):
        alone = ops.rms_norm(on(x[i : i + 1].copy(), device), weight).numpy()
        np.testing.assert_array_equal(alone.view(np.uint16)[0], together.view(np.uint16)[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 7, 33])
@pytest.mark.parametrize("hidden_size", [1, 3, 15, 16, 17, 31, 1280, 2561])
def test_layer_norm_matches_reference(device, rng, dtype, num_tokens, hidden_size):
    x = reference.random(rng, (num_tokens, hidden_size), dtype) + dtype.type(3)
    weight, bias = (reference.random(rng, (hidden_size,), dtype) for _ in range(2))
    out = poisoned(x.shape, dtype, device)

    given = (on(array, device) for array in (x, weight, bias))
    assert ops.layer_norm(*given, eps=1e-5, out=out) is out

    expected, magnitude = reference_vision.layer_norm(x, weight, bias, 1e-5)
    reference.check(out, expected, magnitude=magnitude, terms=hidden_size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [5, 16, 100, 8200])  # a block holds up to 8192
def test_add_layer_norm_matches_reference(device, rng, dtype, hidden_size):
    x, residual = (reference.random(rng, (9, hidden_size), dtype) for _ in range(2))
    weight, bias = (reference.random(rng, (hidden_size,), dtype) for _ in range(2))
    stream = ek.from_numpy(residual, device)

    factors = on(weight, device), on(bias, device)
    out, same = ops.add_layer_norm(on(x, device), stream, *factors, eps=1e-6)

    assert same is stream
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(stream.numpy(), total)
    expected, magnitude = reference_vision.layer_norm(total, weight, bias, 1e-6)
    reference.check(out, expected, magnitude=magnitude, terms=hidden_size)


def test_layer_norm_survives_a_mean_far_from_zero(device, rng):
    """Mean of squares less square of the mean would leave nothing of a variance of 1."""
    x = (reference.random(rng, (3, 1000), F32) + np.float32(50000)).astype(F32)
    ones = np.ones(1000, np.float32)
    out = ops.layer_norm(on(x, device), on(ones, device), on(0 * ones, device)).numpy()
    x64 = reference.f64(x)
    expected = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)
    assert np.abs(out - expected).max() < 0.02  # half a step of a sum near 50000


def test_layer_norm_of_equal_values_is_the_bias(device):
    x = np.repeat(np.array([[0.0], [2.5], [-64.0]], np.float32), 100, axis=1)
    bias = np.arange(100, dtype=np.float32)
    weight = np.full(100, 7, np.float32)
    out = ops.layer_norm(on(x, device), on(weight, device), on(bias, device))
    np.testing.assert_array_equal(out.numpy(), np.repeat(bias[None], 3, axis=0))


def test_layer_norm_keeps_other_rows_from_nan(device):
    x = np.ones((3, 40), np.float32)
    x[0, 3], x[2, 39] = np.nan, np.inf
    ones = on(np.ones(40, np.float32), device)
    out = ops.layer_norm(on(x, device), ones, ones).numpy()
    np.testing.assert_array_equal(np.isnan(out), [[True] * 40, [False] * 40, [True] * 40])


@pytest.mark.parametrize("begin", [8, 9])  # on 16 bytes, and off them
def test_layer_norm_reads_strided_rows_and_writes_in_place(device, rng, begin):
    wide = ek.from_numpy(reference.random(rng, (5, 64), F32), device)
    x, before = wide[:, begin : begin + 48], wide.numpy().copy()
    weight, bias = (reference.random(rng, (48,), F32) for _ in range(2))

    ops.layer_norm(x, on(weight, device), on(bias, device), out=x)

    expected, magnitude = reference_vision.layer_norm(
        before[:, begin : begin + 48], weight, bias, 1e-6
    )
    after = wide.numpy().copy()
    changed = np.ascontiguousarray(after[:, begin : begin + 48])
    reference.check(changed, expected, magnitude=magnitude, terms=48)
    after[:, begin : begin + 48] = before[:, begin : begin + 48]
    np.testing.assert_array_equal(after, before)


def test_layer_norm_row_does_not_depend_on_the_batch(device, rng):
    x = reference.random(rng, (40, 1000), BF16)
    weight, bias = (on(reference.random(rng, (1000,), BF16), device) for _ in range(2))
    together = ops.layer_norm(on(x, device), weight, bias).numpy()
    for i in (0, 1, 7, 8, 39):
        alone = ops.layer_norm(on(x[i : i + 1].copy(), device), weight, bias).numpy()
        np.testing.assert_array_equal(alone.view(np.uint16)[0], together.view(np.uint16)[i])


def test_layer_norm_names_the_wrong_argument(device):
    x, weight = on(np.ones((2, 8), np.float32), device), on(np.ones(8, np.float32), device)
    with pytest.raises(
        ek.ArgumentError, match=r"layer_norm: bias: expected shape \[hidden_size=8\]"
    ):
        ops.layer_norm(x, weight, on(np.ones(7, np.float32), device))
    with pytest.raises(ek.ArgumentError, match="add_layer_norm: residual: expected memory apart"):
        ops.add_layer_norm(x, x, weight, weight)
    with pytest.raises(ek.ArgumentError, match="layer_norm: eps: expected a finite value > 0"):
        ops.layer_norm(x, weight, weight, eps=float("inf"))
    out = on(np.ones((0, 8), np.float32), device)
    assert ops.layer_norm(out, weight, weight).shape == (0, 8)


def test_rms_norm_of_no_tokens_is_empty(device):
    out = ops.rms_norm(on(np.empty((0, 8), np.float32), device), on(np.ones(8, np.float32), device))
    assert out.shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        ((2, 8), (7,), r"rms_norm: weight: expected shape \[hidden_size=8\], got \[7\]"),
        ((2, 2, 8), (8,), r"rms_norm: x: expected 2 dimensions, got shape \[2, 2, 8\]"),
    ],
)
def test_rms_norm_names_the_wrong_tensor(device, x, weight, message):
    with pytest.raises(ek.ArgumentError, match=message):
        ops.rms_norm(on(np.ones(x, np.float32), device), on(np.ones(weight, np.float32), device))


def test_rms_norm_names_the_wrong_argument(device):
    x, weight = on(np.ones((2, 8), np.float32), device), on(np.ones(8, np.float32), device)
    with pytest.raises(ek.ArgumentError, match="x: expected float32 or bfloat16, got float64"):
        ops.rms_norm(on(np.ones((2, 8)), device), weight)
    with pytest.raises(ek.ArgumentError, match="eps: expected a finite value > 0, got 0"):
        ops.rms_norm(x, weight, eps=0)
    with pytest.raises(ek.ArgumentError, match="eps"):
        ops.rms_norm(x, weight, eps=float("nan"))
    with pytest.raises(TypeError, match=r"rms_norm: x: expected a tensor.*got list"):
        ops.rms_norm([[1.0]], weight)


def test_out_may_not_be_read_only_or_overlap():
    x, weight = np.ones((4, 8), np.float32), np.ones(8, np.float32)
    frozen = np.ones((4, 8), np.float32)
    frozen.flags.writeable = False
    ops.rms_norm(frozen, weight)
    with pytest.raises(ek.ArgumentError, match="out: expected a writable tensor"):
        ops.rms_norm(x, weight, out=frozen)
    with pytest.raises(ek.ArgumentError, match="out: expected memory apart from x"):
        ops.rms_norm(x[:-1], weight, out=x[1:])
    with pytest.raises(ek.ArgumentError, match="out: expected distinct elements"):
        ops.rms_norm(x, weight, out=np.lib.stride_tricks.as_strided(x, (4, 8), (4, 4)))


@pytest.mark.parametrize("op", [ops.add_rms_norm, ops.add_layer_norm])
@pytest.mark.parametrize("name", ["x", "out", "weight", "bias"])
def test_a_residual_that_is_written_lies_apart_from_all_else(op, name):
    if name == "bias" and op is ops.add_rms_norm:
        pytest.skip("it has none")
    room = np.ones((4, 8), np.float32)
    factors = {"weight": np.ones(8, np.float32)}
    if op is ops.add_layer_norm:
        factors["bias"] = np.ones(8, np.float32)
    tensors = {"x": room.copy(), "out": room.copy()} | factors
    tensors[name] = room[1] if name in factors else room
    x = tensors.pop("x")
    with pytest.raises(ek.ArgumentError, match=f"residual: expected memory apart from {name}"):
        op(x, room, **tensors)
