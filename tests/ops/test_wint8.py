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
    check_packed_widths,
    check_pairs_are_asked_for,
    check_rows_are_independent,
    check_scaled_linear,
    check_sum_is_that_of_linear,
    columns_written,
    given_weight,
    ids,
    panels,
    scaled_operands,
)
from reference import BF16, F32, on, poisoned

INT8 = np.dtype(np.int8)
EITHER_MODE = pytest.mark.parametrize(
    "int8_activations", [False, pytest.param(True, id="int8_activations")]
)


def random_weight(rng, out_features, in_features) -> np.ndarray:
    """All of int8, and -128 too, which quantising never makes."""
    return rng.integers(-128, 128, (out_features, in_features)).astype(np.int8)


random_operands = partial(scaled_operands, random_weight)


# ------------------------------------------------------------------------------------ weight-only


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", SCALED_DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wint8_linear_matches_reference(device, rng, shape, dtypes, packed):
    operands = random_operands(rng, shape, dtypes)
    given = given_weight(operands[1], ops.wint8_pack, packed, device)
    check_scaled_linear(ops.wint8_linear, given, operands, dtypes[2], device)


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_is_that_of_linear(rng, shape, x_dtype):
    operands = random_operands(rng, shape, (x_dtype, F32, F32))
    packed = ops.wint8_pack(operands[1])
    check_sum_is_that_of_linear(ops.wint8_linear, packed, operands, rng)


def test_weight_only_keeps_infinity_and_nan(device):
    weight = on(np.ones((5, 70), np.int8), device)
    check_infinity_and_nan_stay(ops.wint8_linear, weight, device)


# ------------------------------------------------------------------------------- int8 activations


@EITHER_PACKED
@pytest.mark.parametrize("dtypes", SCALED_DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_activations_are_exactly_the_formula(rng, shape, dtypes, packed):
    x, weight, scale, bias = random_operands(rng, shape, dtypes)
    expected = reference.w8a8_linear(x, weight, scale, bias).astype(dtypes[2])
    given = given_weight(weight, ops.wint8_pack, packed, "cpu")
    out = poisoned((shape[0], shape[2]), dtypes[2], "cpu")
    ops.wint8_linear(x, given, scale, bias, int8_activations=True, out=out)
    np.testing.assert_array_equal(out.numpy(), expected)


def test_int8_activations_reach_the_largest_sums():
    """64 products of 127 and of -128, the worst that an accumulator meets."""
    for value in (127, -128):
        weight = np.full((17, 640), value, np.int8)
        x = np.ones((7, 640), np.float32)
        x[1::2] = -1
        expected = reference.w8a8_linear(x, weight, np.ones(17, F32), None)
        got = ops.wint8_linear(x, ops.wint8_pack(weight), np.ones(17, F32), int8_activations=True)
        np.testing.assert_array_equal(got.numpy(), expected)
        assert abs(expected[0, 0] / (640 * value) - 1) < 1e-5


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 3e-37, 4e-37, 1e-30, 1e32])
def test_int8_activations_of_any_magnitude(rng, largest):
    x = rng.uniform(-1, 1, (5, 130)).astype(np.float32)
    x[:, ::64] = 1
    x *= np.float32(largest)
    weight, scale = random_weight(rng, 33, 130), np.full(33, 2.0**-9, np.float32)
    expected = reference.w8a8_linear(x, weight, scale, None)
    got = ops.wint8_linear(x, weight, scale, int8_activations=True).numpy()
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(got).all()
    assert np.any(got != 0) == (largest > 3.8e-37)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("column", [0, 63, 64, 69])
def test_int8_activations_keep_a_bad_row_to_itself(rng, value, column):
    x = reference.random(rng, (9, 70), F32)
    weight, scale = random_weight(rng, 20, 70), np.ones(20, np.float32)
    before = ops.wint8_linear(x, weight, scale, int8_activations=True).numpy()
    x[4, column] = value
    after = ops.wint8_linear(x, weight, scale, int8_activations=True).numpy()
    assert np.isnan(after[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(after[others], before[others])


# -------------------------------------------------------------------------------------- both modes


@EITHER_MODE
@EITHER_PACKED
@pytest.mark.parametrize("dtypes", [d for d in SCALED_DTYPES if d[0] == d[2]], ids=ids)
@pytest.mark.parametrize("shape", GATED_SHAPES, ids=str)
def test_wint8_linear_silu_and_mul_equals_the_two_ops(
    device, rng, shape, dtypes, packed, int8_activations
):
    if int8_activations and device != "cpu":
        pytest.skip("int8 activations are the CPU's")
    num_tokens, in_features, intermediate_size = shape
    x = on(reference.random(rng, (num_tokens, in_features), dtypes[0]), device)
    weight = random_weight(rng, 2 * intermediate_size, in_features)
    given = given_weight(weight, ops.wint8_pack, packed, device)
    scale = on(rng.uniform(0.001, 0.01, 2 * intermediate_size).astype(np.float32), device)
    bias = None
    if intermediate_size % 2:
        bias = on(reference.random(rng, (2 * intermediate_size,), dtypes[1]), device)
    mode = {"int8_activations": int8_activations}
    check_gated(
        lambda **out: ops.wint8_linear_silu_and_mul(x, given, scale, bias, **out, **mode),
        ops.silu_and_mul(ops.wint8_linear(x, given, scale, bias, **mode)).numpy(),
        dtypes[2],
        device,
    )


@EITHER_MODE
@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=str)
def test_row_depends_on_itself_alone(rng, x_dtype, int8_activations):
    """Alone, in any batch, packed or not, on any number of threads: the same bits."""
    x = reference.random(rng, (131, 2100), x_dtype)
    weight = random_weight(rng, 150, 2100)
    scale = rng.uniform(0.001, 0.01, 150).astype(np.float32)
    packed = ops.wint8_pack(weight)

    def run(rows, given=packed):
        got = ops.wint8_linear(rows, given, scale, int8_activations=int8_activations)
        return got.numpy()

    np.testing.assert_array_equal(run(x, weight), run(x))
    check_rows_are_independent(run, x)


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)], ids=str)
def test_empty_extents(device, shape):
    num_tokens, in_features, out_features = shape
    x = on(np.ones((num_tokens, in_features), np.float32), device)
    weight = on(np.ones((out_features, in_features), np.int8), device)
    scale = on(np.ones(out_features, np.float32), device)
    for mode in (False, True) if device == "cpu" else (False,):
        out = ops.wint8_linear(x, weight, scale, int8_activations=mode)
        assert out.shape == (num_tokens, out_features)
        np.testing.assert_allclose(out.numpy(), in_features, rtol=1e-6)


@pytest.mark.parametrize(("begin", "end"), COLUMNS)
@EITHER_MODE
def test_strided_rows_and_outputs(device, rng, begin, end, int8_activations):
    if int8_activations and device != "cpu":
        pytest.skip("int8 activations are the CPU's")
    wide_x = np.full((9, 50), np.nan, np.float32)
    wide_x[:, begin:end] = reference.random(rng, (9, end - begin), F32)
    x, weight = ek.from_numpy(wide_x, device), random_weight(rng, 20, end - begin)
    scale = np.ones(20, np.float32)
    mode = {"int8_activations": int8_activations}
    args = on(weight, device), on(scale, device)
    got = columns_written(
        lambda out: ops.wint8_linear(x[:, begin:end], *args, out=out, **mode), device
    )
    alone = ops.wint8_linear(on(wide_x[:, begin:end].copy(), device), *args, **mode).numpy()
    np.testing.assert_array_equal(got, alone)


# ------------------------------------------------------------------------------ quantising, packing


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_quantize_is_exactly_the_formula(device, rng, dtype):
    weight = reference.random(rng, (50, 77), dtype, 0.02)
    weight[3] = 0
    weight[4] = np.linspace(-1, 1, 77).astype(dtype) * dtype.type(127)  # halves among them
    weight[5] = (np.arange(77) - 38.5).astype(dtype)
    weight[5, 0] = 127
    weight[6] *= dtype.type(1e-38)
    wide = on(np.pad(weight, ((0, 0), (3, 4))), device)
    for given in (on(weight, device), wide[:, 3:80]):
        quantized, scale = ops.wint8_quantize(given)
        expected, expected_scale = reference.wint8_quantize(weight)
        np.testing.assert_array_equal(quantized.numpy(), expected)
        np.testing.assert_array_equal(scale.numpy(), expected_scale)
        if device != "cpu":
            continue
        packed, scale = ops.wint8_quantize_and_pack(given)
        assert (packed.out_features, packed.in_features) == weight.shape
        np.testing.assert_array_equal(
            packed.tensor.numpy(), ops.wint8_pack(expected).tensor.numpy()
        )
        np.testing.assert_array_equal(scale.numpy(), expected_scale)
    assert np.abs(expected).max(axis=1)[0] == 127
    assert expected_scale[3] == 0


def test_quantize_rounds_halves_away_from_zero():
    weight = np.array([[127, 0.5, -0.5, 1.5, 2.5, -2.5, 0.4999, -126.5, 126.5]], np.float32)
    quantized, scale = ops.wint8_quantize(weight)
    assert quantized.numpy().tolist() == [[127, 1, -1, 2, 3, -3, 0, -127, 127]]
    assert scale.numpy().tolist() == [1]


def test_quantize_keeps_a_bad_row_to_itself(device):
    weight = np.ones((3, 5), np.float32)
    weight[0, 4], weight[2, 0] = np.nan, -np.inf
    quantized, scale = ops.wint8_quantize(on(weight, device))
    assert quantized.numpy().tolist() == [[0] * 5, [127] * 5, [0] * 5]
    assert np.isnan(scale.numpy()).tolist() == [True, False, True]


def test_quantize_empty_extents(device):
    for shape in ((0, 4), (3, 0)):
        quantized, scale = ops.wint8_quantize(on(np.ones(shape, np.float32), device))
        assert quantized.shape == shape
        assert scale.numpy().tolist() == [0] * shape[0]
        if device != "cpu":
            continue
        packed, scale = ops.wint8_quantize_and_pack(np.ones(shape, np.float32))
        assert packed.nbytes == 0
        assert scale.numpy().tolist() == [0] * shape[0]


def test_packed_layout(rng):
    weight = random_weight(rng, 37, 22)
    packed = ops.wint8_pack(weight)
    assert (packed.out_features, packed.in_features, packed.nbytes) == (37, 22, 48 * 24)
    want = panels(weight, 4)
    np.testing.assert_array_equal(packed.tensor.numpy(), want)
    wide = np.pad(weight, ((0, 0), (3, 5)))
    np.testing.assert_array_equal(ops.wint8_pack(wide[:, 3:25]).tensor.numpy(), want)


# ------------------------------------------------------------------------------------------ errors


def test_wrong_arguments_are_named(device):
    x, weight, scale = (
        on(a, device) for a in (np.ones((2, 8), F32), np.ones((4, 8), INT8), np.ones(4, F32))
    )
    flat, wide, bf16 = (
        on(a, device) for a in (np.ones(8, F32), np.ones((4, 7), INT8), np.ones((4, 8), BF16))
    )
    for message, bad in [
        ("weight: expected shape", lambda: ops.wint8_linear(x, wide, scale)),
        ("weight: expected int8, got bfloat16", lambda: ops.wint8_linear(x, bf16, scale)),
        ("scale: expected shape", lambda: ops.wint8_linear(x, weight, flat)),
        ("x: expected 2 dimensions", lambda: ops.wint8_linear(flat, weight, scale)),
        ("bias: expected shape", lambda: ops.wint8_linear(x, weight, scale, flat)),
        ("dtype: expected", lambda: ops.wint8_linear(x, weight, scale, dtype="float7")),
        ("out: expected float32", lambda: ops.wint8_linear(x, weight, scale, dtype="bfloat16")),
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"wint8_linear: {message}"):
            bad()
    with pytest.raises(TypeError, match="wint8_linear: x: expected a tensor"):
        ops.wint8_linear("x", weight, scale)
    with pytest.raises(TypeError, match="wint8_linear: int8_activations: expected True or False"):
        ops.wint8_linear(x, weight, scale, int8_activations=1)


@pytest.mark.cuda
def test_int8_activations_are_not_on_cuda():
    x, weight, scale = np.ones((2, 8), F32), np.ones((4, 8), INT8), np.ones(4, F32)
    given = [ek.from_numpy(a, "cuda") for a in (x, weight, scale)]
    with pytest.raises(ek.UnsupportedError, match="int8_activations: no kernel for cuda:0; pass"):
        ops.wint8_linear(*given, int8_activations=True)


def test_gated_weights_come_in_pairs(rng):
    check_pairs_are_asked_for(
        ops.wint8_pack,
        lambda x, weight: ops.wint8_linear_silu_and_mul(x, weight, np.ones(7, F32)),
        "wint8_linear_silu_and_mul",
        random_weight(rng, 7, 8),
    )


def test_packed_widths_are_checked():
    scale = np.ones(17, F32)
    check_packed_widths(
        ops.wint8_pack,
        lambda x, weight, **out: ops.wint8_linear(x, weight, scale, **out),
        INT8,
        BF16,
    )
    with pytest.raises(ek.ArgumentError, match="wint8_pack: weight: expected int8, got float32"):
        ops.wint8_pack(np.ones((3, 4), np.float32))
