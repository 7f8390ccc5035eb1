from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
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
