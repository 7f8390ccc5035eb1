"""What every linear layer must do, whatever its weight is made of: test_gemm.py and its kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from reference import BF16, F32, on, poisoned

# num_tokens, in_features, out_features: around the tiles (6 rows, 16 x 8 outputs), the blocks
# (96 rows, 1024 deep), the groups of columns in packed weights and the 64 that share a scale.
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
# num_tokens, in_features, intermediate_size
GATED_SHAPES = [
    (1, 7, 1),
    (1, 64, 300),
    (2, 33, 16),
    (5, 40, 63),
    (6, 70, 64),
    (7, 64, 65),
    (97, 1030, 100),
]
# Columns of a wider matrix: the first row off 16 bytes, and on.
COLUMNS = [(10, 40), (0, 32)]

# Of layers whose weights have scales: x, bias, out.
SCALED_DTYPES = [
    (F32, F32, F32),
    (F32, BF16, F32),
    (BF16, BF16, BF16),
    (BF16, F32, BF16),
    (BF16, BF16, F32),
]

EITHER_PACKED = pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])


def ids(dtypes: tuple[np.dtype, ...]) -> str:
    return "-".join(map(str, dtypes))


def given_weight(weight: np.ndarray, pack: Callable, packed: bool, device: str) -> Any:
    if packed and device != "cpu":
        pytest.skip("packed weights are the CPU's")
    return pack(weight) if packed else on(weight, device)


def scaled_operands(random_weight, rng, shape, dtypes):
    """x, a quantized weight, its scales, and the bias, which only an odd number of outputs has."""
    num_tokens, in_features, out_features = shape
    x = reference.random(rng, (num_tokens, in_features), dtypes[0])
    weight = random_weight(rng, out_features, in_features)
    scale = rng.uniform(0.001, 0.1, out_features).astype(np.float32)
    bias = reference.random(rng, (out_features,), dtypes[1]) if out_features % 2 else None
    return x, weight, scale, bias


def check_scaled_linear(
    linear: Callable[..., Any], given: Any, operands: tuple, dtype: np.dtype, device: str
) -> None:
    """``given``: the weight of the operands, as ``linear`` takes it."""
    x, weight, scale, bias = operands
    out = poisoned((len(x), len(weight)), dtype, device)
    linear(on(x, device), given, on(scale, device), given_bias(bias, device), out=out)
    expected, magnitude = reference.wint8_linear(x, weight, scale, bias)
    reference.check(out, expected, magnitude=magnitude, terms=x.shape[1])


def check_sum_is_that_of_linear(
    linear: Callable[..., Any], given: Any, operands: tuple, rng: np.random.Generator
) -> None:
    """Bit for bit, down to products that the kernels take as zero and sums that overflow."""
    x, weight, scale, _ = operands
    x *= np.exp2(rng.integers(-135, 125, x.shape[1])).astype(x.dtype)
    for row in (x, x * 0):
        with np.errstate(all="ignore"):
            total = ops.linear(row, ops.linear_pack(weight.astype(BF16)), dtype="float32").numpy()
            expected = scale * total
        got = linear(row, given, scale, dtype="float32").numpy()
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))


def check_infinity_and_nan_stay(linear: Callable[..., Any], given: Any, device: str) -> None:
    """``given``: ones, ``[5, 70]``."""
    x = np.zeros((3, 70), np.float32)
    x[0, 3], x[1, 66] = np.inf, np.nan
    out = linear(on(x, device), given, on(np.ones(5, F32), device)).numpy()
    assert np.all(np.isposinf(out[0]))
    assert np.all(np.isnan(out[1]))
    assert np.all(out[2] == 0)


def given_bias(array: np.ndarray | None, device: str) -> Any:
    return None if array is None else on(array, device)


def check_rows_are_independent(run: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> None:
    """Of 131 rows each gives the same bits alone, in any batch, on any number of threads."""
    whole = run(x)
    for begin, end in [(0, 1), (5, 7), (3, 6), (90, 94), (7, 12), (60, 66), (20, 117), (130, 131)]:
        np.testing.assert_array_equal(run(x[begin:end]), whole[begin:end])
    before = ek.num_threads()
    try:
        for threads in (1, 2, 5):
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(run(x), whole)
    finally:
        ek.set_num_threads(before)


def check_gated(
    run: Callable[..., ek.Tensor], expected: np.ndarray, dtype: np.dtype, device: str
) -> None:
    """``run(out=, gate_up=)``: the same where it allocates and inside wider rows, and no more."""
    num_tokens, intermediate_size = expected.shape
    np.testing.assert_array_equal(run().numpy(), expected)
    wide = poisoned((num_tokens, intermediate_size + 3), dtype, device)
    gate_up = poisoned((num_tokens, 2 * intermediate_size), dtype, device)
    run(out=wide[:, 1 : intermediate_size + 1], gate_up=gate_up)
    got = wide.numpy()
    np.testing.assert_array_equal(got[:, 1 : intermediate_size + 1], expected)
    assert np.isnan(got[:, 0].astype(np.float32)).all()
    assert np.isnan(got[:, intermediate_size + 1 :].astype(np.float32)).all()


def columns_written(run: Callable[[ek.Tensor], Any], device: str) -> np.ndarray:
    """What ``run(out)`` puts into 20 columns of 9 wider rows; it leaves the others alone."""
    wide = ek.from_numpy(np.full((9, 40), 7, np.float32), device)
    run(wide[:, 5:25])
    got = wide.numpy()
    assert np.all(got[:, :5] == 7)
    assert np.all(got[:, 25:] == 7)
    return got[:, 5:25]


def check_packed_widths(
    pack: Callable, run: Callable[..., Any], weight_dtype: np.dtype, x_dtype: np.dtype
) -> None:
    """Of ``run(x, packed, out=)``: panels are padded, so these are asked for by name."""
    packed = pack(np.ones((17, 6), weight_dtype))
    with pytest.raises(ek.ArgumentError, match="x: expected in_features=6 columns"):
        run(np.ones((2, 5), x_dtype), packed)
    with pytest.raises(ek.ArgumentError, match="out: expected out_features=17 columns"):
        run(np.ones((2, 6), x_dtype), packed, out=np.ones((2, 20), x_dtype))
    with pytest.raises(ek.ArgumentError, match=f"{pack.__name__}: weight: expected 2 dimensions"):
        pack(np.ones(3, weight_dtype))


def check_pairs_are_asked_for(
    pack: Callable, run: Callable[..., Any], op: str, weight: np.ndarray
) -> None:
    """``run(x, weight)`` of a gated layer, whose weight ``[7, 8]`` has an odd number of rows."""
    x = np.ones((2, 8), np.float32)
    for given in (weight, pack(weight)):
        with pytest.raises(ek.ArgumentError, match="weight: expected an even number of out_featur"):
            run(x, given)
    with pytest.raises(ek.ArgumentError, match=f"{op}: x: expected in_features=8"):
        run(x[:, :5], pack(weight))


def panels(weight: np.ndarray, group: int) -> np.ndarray:
    """``[ceil(N / 16), ceil(K / group), 16, group]``: 16 rows, so many columns of each together."""
    rows, columns = (-(-extent // n) for extent, n in zip(weight.shape, (16, group), strict=True))
    padded = np.zeros((16 * rows, group * columns), weight.dtype)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.reshape(rows, 16, columns, group).transpose(0, 2, 1, 3)
