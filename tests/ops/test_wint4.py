from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from linear_cases import (
    COLUMNS,
    EITHER_PACKED,
    GATED_SHAPES,
    SCALED_DTYPES,
    SHAPES,
    check_gated,
    check_infinity_and_nan_stay,
    check_pairs_are_asked_for,
    check_rows_are_independent,
    check_scaled_linear,
    check_sum_is_that_of_linear,
    columns_written,
    given_bias,
    ids,
    scaled_operands,
)
from reference import BF16, F32, on


def random_weight(rng, out_features, in_features) -> np.ndarray:
    """All of 4 bits, and -8 too, which quantising never makes."""
    return rng.integers(-8, 8, (out_features, in_features)).astype(np.int8)


def given_weight(weight, packed, device="cpu"):
    pairs = reference.nibbles(weight)
    if not packed:
        return on(pairs, device)
    if device != "cpu":
        pytest.skip("packed weights are the CPU's")
    return ops.wint4_pack(pairs, weight.shape[1])


random_operands = partial(scaled_operands, random_weight)


# --------------------------------------------------------------------------------------- products


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", SCALED_DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wint4_linear_matches_reference(device, rng, shape, dtypes, packed):
    operands = random_operands(rng, shape, dtypes)
    given = given_weight(operands[1], packed, device)
    check_scaled_linear(ops.wint4_linear, given, operands, dtypes[2], device)


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_is_that_of_linear(rng, shape, x_dtype):
    operands = random_operands(rng, shape, (x_dtype, F32, F32))
    packed = given_weight(operands[1], True)
    check_sum_is_that_of_linear(ops.wint4_linear, packed, operands, rng)


@pytest.mark.parametrize("num_tokens", [1, 6, 7])
@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
def test_every_value_in_every_place(num_tokens, x_dtype):
    """Each of the 16 values at each of 24 columns of each row of two panels, told apart by x."""
    rows, columns = 32, 24
    x = np.zeros((num_tokens, columns), x_dtype)
    for column in range(columns):
        x[:] = 0
        x[:, column] = 1
        for first in range(16):
            weight = np.full((rows, columns), 7, np.int8)
            weight[:, column] = (np.arange(rows) + first) % 16 - 8
            got = ops.wint4_linear(x, given_weight(weight, True), np.ones(rows, F32)).numpy()
            np.testing.assert_array_equal(got.astype(F32)[-1], weight[:, column])


def test_infinity_and_nan_stay(device):
    weight = given_weight(np.ones((5, 70), np.int8), device == "cpu", device)
    check_infinity_and_nan_stay(ops.wint4_linear, weight, device)


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", [d for d in SCALED_DTYPES if d[0] == d[2]], ids=ids)
@pytest.mark.parametrize("shape", GATED_SHAPES, ids=str)
def test_wint4_linear_silu_and_mul_equals_the_two_ops(device, rng, shape, dtypes, packed):
    x, weight, scale, bias = random_operands(rng, (*shape[:2], 2 * shape[2]), dtypes)
    if shape[2] % 2:
        bias = reference.random(rng, (2 * shape[2],), dtypes[1])
    given = given_weight(weight, packed, device)
    args = on(x, device), given, on(scale, device), given_bias(bias, device)
    expected = ops.silu_and_mul(ops.wint4_linear(*args)).numpy()
    check_gated(
        lambda **out: ops.wint4_linear_silu_and_mul(*args, **out), expected, dtypes[2], device
    )


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
def test_row_depends_on_itself_alone(rng, x_dtype):
    """Alone, in any batch, packed or not, on any number of threads: the same bits."""
    x, weight = reference.random(rng, (131, 2100), x_dtype), random_weight(rng, 150, 2100)
    scale = rng.uniform(0.001, 0.01, 150).astype(np.float32)
    plain, packed = given_weight(weight, False), given_weight(weight, True)

    def run(rows, given=packed):
        return ops.wint4_linear(rows, given, scale).numpy()

    np.testing.assert_array_equal(run(x, plain), run(x))
    check_rows_are_independent(run, x)


@EITHER_PACKED
@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)], ids=str)
def test_empty_extents(device, shape, packed):
    num_tokens, in_features, out_features = shape
    given = given_weight(np.ones((out_features, in_features), np.int8), packed, device)
    x, scale = np.ones((num_tokens, in_features), F32), np.ones(out_features, F32)
    out = ops.wint4_linear(on(x, device), given, on(scale, device))
    assert out.shape == (num_tokens, out_features)
    np.testing.assert_array_equal(out.numpy(), in_features)


@pytest.mark.parametrize(("begin", "end"), COLUMNS)
def test_strided_rows_and_outputs(device, rng, begin, end):
    wide_x = np.full((9, 50), np.nan, np.float32)
    wide_x[:, begin:end] = reference.random(rng, (9, end - begin), F32)
    weight = given_weight(random_weight(rng, 20, end - begin), False, device)
    args = weight, on(np.ones(20, F32), device)
    x = ek.from_numpy(wide_x, device)[:, begin:end]
    got = columns_written(lambda out: ops.wint4_linear(x, *args, out=out), device)
    alone = ops.wint4_linear(on(wide_x[:, begin:end].copy(), device), *args).numpy()
    np.testing.assert_array_equal(got, alone)


# ------------------------------------------------------------------------------ quantising, packing


@pytest.mark.parametrize("in_features", [76, 77])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_quantize_is_exactly_the_formula(device, rng, dtype, in_features):
    weight = reference.random(rng, (50, in_features), dtype, 0.02)
    weight[3] = 0
    weight[4] = np.linspace(-1, 1, in_features).astype(dtype) * dtype.type(7)
    weight[5] = ((np.arange(in_features) % 29 - 14) / 2).astype(dtype)  # all halves
    weight[6] *= dtype.type(1e-38)
    wide = on(np.pad(weight, ((0, 0), (3, 4))), device)
    for given in (on(weight, device), wide[:, 3 : 3 + in_features]):
        quantized, scale = ops.wint4_quantize(given)
        expected, expected_scale = reference.wint4_quantize(weight)
        np.testing.assert_array_equal(quantized.numpy(), reference.nibbles(expected))
        np.testing.assert_array_equal(scale.numpy(), expected_scale)
        if device != "cpu":
            continue
        packed, scale = ops.wint4_quantize_and_pack(given)
        assert (packed.out_features, packed.in_features) == weight.shape
        np.testing.assert_array_equal(
            packed.tensor.numpy(), given_weight(expected, True).tensor.numpy()
        )
        np.testing.assert_array_equal(scale.numpy(), expected_scale)
    assert np.abs(expected).max(axis=1)[0] == 7
    assert expected_scale[3] == 0


def test_quantize_rounds_halves_away_from_zero():
    weight = np.array([[7, 0.5, -0.5, 1.5, 2.5, -2.5, 0.4999, -6.5, 6.5]], np.float32)
    quantized, scale = ops.wint4_quantize(weight)
    # 7 and 1; -1 and 2; 3 and -3; 0 and -7; 7 alone
    assert quantized.numpy().tolist() == [[0x17, 0x2F, 0xD3, 0x90, 0x07]]
    assert scale.numpy().tolist() == [1]


def test_quantize_keeps_a_bad_row_to_itself(device):
    weight = np.ones((3, 5), np.float32)
    weight[0, 4], weight[2, 0] = np.nan, -np.inf
    quantized, scale = ops.wint4_quantize(on(weight, device))
    assert quantized.numpy().tolist() == [[0] * 3, [0x77, 0x77, 0x07], [0] * 3]
    assert np.isnan(scale.numpy()).tolist() == [True, False, True]


def test_quantize_empty_extents(device):
    for shape in ((0, 4), (3, 0)):
        quantized, scale = ops.wint4_quantize(on(np.ones(shape, np.float32), device))
        assert quantized.shape == (shape[0], shape[1] // 2)
        assert scale.numpy().tolist() == [0] * shape[0]
        if device != "cpu":
            continue
        packed, scale = ops.wint4_quantize_and_pack(np.ones(shape, np.float32))
        assert packed.nbytes == 0
        assert scale.numpy().tolist() == [0] * shape[0]


@pytest.mark.parametrize("in_features", [21, 22, 24])
def test_packed_layout(rng, in_features):
    """Bit by bit as csrc/ops/wint4.h writes it down."""
    weight = random_weight(rng, 37, in_features)
    packed = given_weight(weight, True)
    assert (packed.out_features, packed.in_features, packed.nbytes) == (37, in_features, 48 * 12)
    lanes = packed.tensor.numpy().view(np.uint32)[..., 0]  # [panel, octet, row]
    padded = np.zeros((48, 24), np.int8)
    padded[:37, :in_features] = weight
    for row in range(48):
        for k in range(24):
            shift = 4 * (k % 8 // 2) + 16 * (k % 2)
            nibble = lanes[row // 16, k // 8, row % 16] >> shift & 15
            assert nibble == padded[row, k] & 15
    wide = np.pad(reference.nibbles(weight), ((0, 0), (3, 5)))[:, 3:-5]
    again = ops.wint4_pack(wide, in_features)
    np.testing.assert_array_equal(again.tensor.numpy(), packed.tensor.numpy())


# ------------------------------------------------------------------------------------------ errors


def test_wrong_arguments_are_named():
    x, weight, scale = np.ones((2, 8), F32), np.ones((4, 4), np.uint8), np.ones(4, F32)
    flat, wide = np.ones(8, F32), np.ones((4, 5), np.uint8)
    for message, bad in [
        ("weight: expected shape", lambda: ops.wint4_linear(x, wide, scale)),
        ("weight: expected uint8, got int8", lambda: ops.wint4_linear(x, wide.view("i1"), scale)),
        ("scale: expected shape", lambda: ops.wint4_linear(x, weight, flat)),
        ("x: expected 2 dimensions", lambda: ops.wint4_linear(flat, weight, scale)),
        ("bias: expected shape", lambda: ops.wint4_linear(x, weight, scale, flat)),
        ("dtype: expected", lambda: ops.wint4_linear(x, weight, scale, dtype="float7")),
        ("in_features: expected 8 or one less, got 6", lambda: ops.wint4_pack(weight, 6)),
        ("in_features: expected 0 or one less, got -1", lambda: ops.wint4_pack(weight[:, :0], -1)),
        ("weight: expected 2 dimensions", lambda: ops.wint4_pack(flat)),
        ("weight: expected 2 dimensions", lambda: ops.wint4_quantize(flat)),
    ]:
        with pytest.raises(ek.ArgumentError, match=message):
            bad()


def test_packed_widths_are_checked():
    packed = given_weight(np.ones((17, 6), np.int8), True)
    scale = np.ones(17, F32)
    with pytest.raises(ek.ArgumentError, match="x: expected in_features=6 columns"):
        ops.wint4_linear(np.ones((2, 5), F32), packed, scale)
    with pytest.raises(ek.ArgumentError, match="out: expected out_features=17 columns"):
        ops.wint4_linear(np.ones((2, 6), F32), packed, scale, out=np.ones((2, 20), F32))


def test_pairs_are_asked_for():
    def pack(weight):
        return ops.wint4_pack(weight)

    check_pairs_are_asked_for(
        pack,
        lambda x, weight: ops.wint4_linear_silu_and_mul(x, weight, np.ones(7, F32)),
        "wint4_linear_silu_and_mul",
        np.ones((7, 4), np.uint8),
    )
