from __future__ import annotations

import itertools

import numpy as np
import pytest
from expert_cases import CASES, EITHER_PAIR, Experts, offsets_of, row_by_row

import ernie_kernels as ek
from ernie_kernels import ops

import reference
import reference_moe
from linear_cases import EITHER_PACKED
from reference import BF16, F32, poisoned

GATHERED = pytest.mark.parametrize("gathered", [False, pytest.param(True, id="gathered")])
GATED = "_silu_and_mul"


def random_rows(rng, counts, in_features, dtype, gathered):
    """Sorted rows, and the keyword arguments that bring them."""
    num_rows = sum(counts)
    if not gathered:
        x = reference.random(rng, (num_rows, in_features), dtype)
        return x, x, {}
    tokens = reference.random(rng, (max(1, num_rows // 2), in_features), dtype)
    source_rows = rng.integers(0, len(tokens), num_rows).astype(np.int32)
    return tokens[source_rows], tokens, {"source_rows": source_rows}


# --------------------------------------------------------------------------------------- products


@GATHERED
@EITHER_PACKED
@EITHER_PAIR
@pytest.mark.parametrize("case", CASES, ids=str)
def test_grouped_linear_matches_reference(rng, case, kind, x_dtype, packed, gathered):
    counts, out_features, in_features = case
    offsets = offsets_of(counts)
    experts = Experts(rng, kind, len(counts), out_features, in_features, pack=packed)
    rows, x, given = random_rows(rng, counts, in_features, x_dtype, gathered)
    out = poisoned((sum(counts), out_features), x_dtype, "cpu")
    result = ops.grouped_linear(x, experts.given, offsets, out=out, **given)
    assert result is out
    expected, magnitude = reference_moe.grouped_linear(rows, experts.matrices, offsets)
    reference.check(out, expected, magnitude=magnitude, terms=in_features)


@GATHERED
@EITHER_PACKED
@EITHER_PAIR
@pytest.mark.parametrize("suffix", ["", GATED])
def test_a_row_is_what_its_expert_makes_of_it_alone(rng, kind, x_dtype, packed, gathered, suffix):
    for counts, out_features, in_features in CASES:
        if suffix:
            out_features = 2 * ((out_features + 1) // 2)
        offsets = offsets_of(counts)
        experts = Experts(rng, kind, len(counts), out_features, in_features, pack=packed)
        rows, x, given = random_rows(rng, counts, in_features, x_dtype, gathered)
        op = getattr(ops, f"grouped_linear{suffix}")
        for mode in ({}, {"int8_activations": True}) if kind == "wint8" else ({},):
            got = op(x, experts.given, offsets, **given, **mode).numpy()
            expected = row_by_row(experts, rows, offsets, suffix, **mode)
            np.testing.assert_array_equal(got, expected)


@EITHER_PAIR
def test_inside_wider_rows(rng, kind, x_dtype):
    """Rows and outputs of any stride, and nothing written beside them."""
    counts, size = [3, 0, 9], 24
    experts = Experts(rng, kind, 3, 2 * size, 40)
    wide_x = np.full((12, 50), np.nan).astype(x_dtype)
    wide_x[:, 5:45] = reference.random(rng, (12, 40), x_dtype)
    x, dense = ek.from_numpy(wide_x)[:, 5:45], wide_x[:, 5:45].copy()
    for suffix, columns in (("", 2 * size), (GATED, size)):
        op = getattr(ops, f"grouped_linear{suffix}")
        wide = poisoned((12, columns + 3), x_dtype, "cpu")
        op(x, experts.given, offsets_of(counts), out=wide[:, 1 : columns + 1])
        expected = op(dense, experts.given, offsets_of(counts)).numpy()
        np.testing.assert_array_equal(wide.numpy()[:, 1 : columns + 1], expected)
        assert np.isnan(wide.numpy()[:, [0, -2, -1]].astype(F32)).all()


@pytest.mark.parametrize("mode", [{}, {"int8_activations": True}], ids=str)
@pytest.mark.parametrize("kind", ["bfloat16", "wint8", "wint4"])
def test_neither_neighbours_nor_threads_nor_order_matter(rng, kind, mode):
    if mode and kind != "wint8":
        pytest.skip("of int8 weights")
    counts = [40, 0, 1, 97, 12, 6]
    experts, offsets = Experts(rng, kind, 6, 150, 1100), offsets_of(counts)
    x = reference.random(rng, (sum(counts), 1100), BF16)

    def run(rows, offsets):
        return ops.grouped_linear(rows, experts.given, offsets, **mode).numpy()

    whole = run(x, offsets)
    before = ek.num_threads()
    try:
        for threads in (1, 2, 5):
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(run(x, offsets), whole)
    finally:
        ek.set_num_threads(before)
    for keep in (1, 2, 5, 6, 7, 40):  # some rows of each expert, in reverse
        pairs = itertools.pairwise(offsets)
        chosen = [np.arange(b, min(e, b + keep))[::-1] for b, e in pairs]
        rows = np.concatenate(chosen)
        np.testing.assert_array_equal(
            run(x[rows], offsets_of([len(c) for c in chosen])), whole[rows]
        )


@pytest.mark.parametrize("kind", ["bfloat16", "wint4"])
def test_most_experts_that_there_may_be(rng, kind):
    counts = np.zeros(4096, int)
    counts[[0, 17, 4000, 4095]] = 1, 9, 2, 3
    experts = Experts(rng, kind, 4096, 6, 4)
    x = reference.random(rng, (15, 4), BF16)
    got = ops.grouped_linear(x, experts.given, offsets_of(counts)).numpy()
    expected = row_by_row(experts, x, offsets_of(counts), "")
    np.testing.assert_array_equal(got, expected)


def test_plain_tensors_are_weights_too(rng):
    weight = reference.random(rng, (3, 8, 5), BF16)
    x, offsets = reference.random(rng, (4, 5), F32), offsets_of([1, 0, 3])
    expected, magnitude = reference_moe.grouped_linear(x, weight, offsets)
    for given in (weight, ek.from_numpy(weight)):
        out = ops.grouped_linear(x, given, offsets)
        reference.check(out, expected, magnitude=magnitude, terms=5)
    gated = ops.grouped_linear_silu_and_mul(x, weight, offsets)
    np.testing.assert_array_equal(gated.numpy(), ops.silu_and_mul(out).numpy())


@EITHER_PACKED
@EITHER_PAIR
@pytest.mark.parametrize("shape", [(0, 8, 6), (3, 0, 6), (3, 8, 0)], ids=str)
def test_empty_extents(rng, shape, kind, x_dtype, packed):
    num_rows, in_features, out_features = shape
    experts = Experts(rng, kind, 2, out_features, in_features, pack=packed)
    x = reference.random(rng, (num_rows, in_features), x_dtype)
    offsets = offsets_of([0, num_rows])
    assert ops.grouped_linear(x, experts.given, offsets).shape == (num_rows, out_features)
    out = ops.grouped_linear_silu_and_mul(x, experts.given, offsets)
    assert out.shape == (num_rows, out_features // 2)
    if in_features == 0:
        np.testing.assert_array_equal(out.numpy(), 0)


def test_a_bad_row_or_expert_keeps_to_itself(rng):
    experts, offsets = Experts(rng, "bfloat16", 3, 33, 40), offsets_of([4, 4, 4])
    x = reference.random(rng, (12, 40), F32)
    before = ops.grouped_linear(x, experts.given, offsets).numpy()
    x[5, 3] = np.nan
    ops.expert_weights_set(experts.given, 2, np.full((33, 40), np.inf).astype(BF16))
    after = ops.grouped_linear(x, experts.given, offsets).numpy()
    assert np.isnan(after[5]).all()
    assert not np.isfinite(after[8:]).any()
    others = [0, 1, 2, 3, 4, 6, 7]
    np.testing.assert_array_equal(after[others], before[others])


# ---------------------------------------------------------------------------------------- weights


@EITHER_PACKED
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "wint8", "wint4"])
def test_experts_are_set_one_at_a_time(rng, kind, packed):
    """Each in its place, bit for bit as the op that makes one alone, and the others zero."""
    quantization, dtype = (kind, BF16) if kind.startswith("wint") else (None, np.dtype(kind))
    experts = ops.expert_weights(
        3, 19, 13, dtype=str(dtype), quantization=quantization, pack=packed
    )
    assert (experts.num_experts, experts.out_features, experts.in_features) == (3, 19, 13)
    assert experts.is_packed == packed
    assert not experts.weight.numpy().view(np.uint8).any()
    matrix = reference.random(rng, (19, 13), dtype)
    wide = np.pad(matrix, ((0, 0), (2, 3)))[:, 2:-3]  # rows of another stride
    for given in (matrix, wide, ek.from_numpy(matrix)):
        ops.expert_weights_set(experts, np.int64(1), given)
    if quantization is None:
        expected = ops.linear_pack(matrix).tensor.numpy() if packed else matrix
        assert experts.scale is None
        assert experts.nbytes == 3 * expected.nbytes
    else:
        suffix = "quantize_and_pack" if packed else "quantize"
        expected, scale = getattr(ops, f"{kind}_{suffix}")(matrix)
        expected = (expected.tensor if packed else expected).numpy()
        np.testing.assert_array_equal(experts.scale.numpy(), [scale.numpy() * n for n in (0, 1, 0)])
        assert experts.nbytes == 3 * (expected.nbytes + 4 * 19)
    for e in range(3):
        np.testing.assert_array_equal(
            experts.weight.numpy()[e].view(np.uint8), expected.view(np.uint8) * (e == 1)
        )


def test_wrong_weights_are_named():
    def room(num_experts=2, out_features=4, in_features=3, **kwargs):
        return ops.expert_weights(
            num_experts, out_features, in_features, **{"dtype": "float32"} | kwargs
        )

    for message, kwargs in [
        ("dtype: expected float32 or bfloat16, got 'float16'", {"dtype": "float16"}),
        ("quantization: expected None, wint8 or wint4, got 'int3'", {"quantization": "int3"}),
        ("num_experts: expected 1 or more, got 0", {"num_experts": 0}),
        ("num_experts: expected 4096 or fewer, got 4097", {"num_experts": 4097}),
        ("out_features: expected 0 or more, got -1", {"out_features": -1}),
        ("in_features: expected 0 or more, got -5", {"in_features": -5}),
        ("device: expected cpu, cuda or cuda:N, got", {"device": "tpu"}),
    ]:
        with pytest.raises(ek.ArgumentError, match=message):
            room(**kwargs)
    for message, index, matrix in [
        (r"matrix: expected shape \[4, 3\], got shape \[3, 4\]", 0, np.ones((3, 4), F32)),
        (r"matrix: expected shape \[4, 3\], got list", 0, [[1.0] * 3] * 4),
        ("index: expected 0 to 1, got 2", 2, np.ones((4, 3), F32)),
        ("index: expected 0 to 1, got -1", -1, np.ones((4, 3), F32)),
    ]:
        with pytest.raises(ek.ArgumentError, match=f"expert_weights_set: {message}"):
            ops.expert_weights_set(room(), index, matrix)
    for message, quantization, dtype in [
        ("matrix: expected float32, got bfloat16", None, BF16),
        ("matrix: expected float32 or bfloat16, got float64", "wint4", np.dtype("f8")),
    ]:
        for pack in (True, False):
            given = room(pack=pack, quantization=quantization)
            with pytest.raises(ek.ArgumentError, match=f"expert_weights_set: {message}"):
                ops.expert_weights_set(given, 0, np.ones((4, 3), dtype))


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "offsets", [[1, 2, 4], [0, 3, 2, 4], [0, 5, 4], [0, 2, 5], [0, -1, 4], [0, 2, 3], [-1, 2, 4]]
)
def test_offsets_ascend_from_nothing_to_all(offsets):
    weight, out = np.ones((len(offsets) - 1, 4, 3), F32), poisoned((4, 4), F32, "cpu")
    for op in (ops.grouped_linear, ops.grouped_linear_silu_and_mul):
        given = out if op is ops.grouped_linear else out[:, :2]
        with pytest.raises(
            ek.ArgumentError, match="offsets: expected rows ascending from 0 to 4, g"
        ):
            op(np.ones((4, 3), F32), weight, np.array(offsets), out=given)
    assert np.isnan(out.numpy()).all()


@pytest.mark.parametrize("row", [-1, 2, 2**31 - 1, -(2**31)])
def test_source_rows_are_tokens(row):
    source_rows, out = np.array([0, 1, row, 1], np.int32), poisoned((4, 4), F32, "cpu")
    weight, offsets = np.ones((2, 4, 3), F32), offsets_of([2, 2])
    message = f"source_rows: expected tokens from 0 to 1, got {row} at 2"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.grouped_linear(np.ones((2, 3), F32), weight, offsets, source_rows=source_rows, out=out)
    assert np.isnan(out.numpy()).all()


def test_wrong_arguments_are_named(rng):
    x, offsets = np.ones((4, 8), F32), offsets_of([1, 3])
    weight, bf16 = np.ones((2, 6, 8), F32), np.ones((2, 6, 8), BF16)
    int8 = np.ones((2, 6, 8), np.int8)
    scale = np.ones((2, 6), F32)

    def experts(weight, scale=None, num_experts=2, out_features=6, in_features=8):
        return ops.ExpertWeights(weight, num_experts, out_features, in_features, scale)

    packed = Experts(rng, "float32", 2, 6, 8).given.weight
    rows = np.zeros(4, np.int32)
    good = {"x": x, "weight": weight, "expert_offsets": offsets}
    for message, bad in [
        ("weight: expected float32 or bfloat16 or int8", {"weight": weight.astype("f8")}),
        ("weight: expected bfloat16, int8 or uint8", {"x": x.astype(BF16)}),
        (r"weight: expected shape \[num_experts, out", {"weight": weight[0]}),
        ("x: expected shape", {"weight": experts(weight, in_features=7)}),
        ("x: expected shape", {"x": x[:, :7]}),
        ("weight: expected shape", {"weight": experts(packed, out_features=18)}),
        ("weight: expected shape", {"weight": experts(int8[:, :4], scale)}),
        ("weight: expected 1 to 4096 experts", {"weight": weight[:0]}),
        ("weight: expected 1 to 4096 experts", {"weight": np.ones((4097, 0, 8), F32)}),
        (
            "weight: expected out_features of 0 or more",
            {"weight": experts(weight, out_features=-1)},
        ),
        ("weight.scale: expected .* got none", {"weight": experts(int8)}),
        ("weight.scale: expected none beside float32", {"weight": experts(weight, scale)}),
        ("weight.scale: expected shape", {"weight": experts(int8, scale[:1])}),
        ("weight.scale: expected float32", {"weight": experts(int8, bf16[..., 0].copy())}),
        ("expert_offsets: expected shape", {"expert_offsets": offsets[:2]}),
        ("expert_offsets: expected int64", {"expert_offsets": offsets.astype(np.int32)}),
        ("source_rows: expected int32", {"source_rows": rows.astype(np.int64)}),
        ("source_rows: expected 1 dim", {"source_rows": rows[None]}),
        ("weight: expected int8 with int8", {"int8_activations": True}),
    ]:
        for op in (ops.grouped_linear, ops.grouped_linear_silu_and_mul):
            with pytest.raises(ek.ArgumentError, match=message):
                op(**good | bad)
    with pytest.raises(ek.ArgumentError, match="out: expected shape"):
        ops.grouped_linear(x, weight, offsets, out=np.ones((4, 5), F32))
    with pytest.raises(ek.ArgumentError, match="out: expected out_features / 2 columns"):
        ops.grouped_linear_silu_and_mul(x, weight, offsets, out=np.ones((4, 2), F32))
    with pytest.raises(ek.ArgumentError, match="weight: expected an even number of out_features"):
        ops.grouped_linear_silu_and_mul(x, weight[:, :5].copy(), offsets)
    with pytest.raises(ek.ArgumentError, match="out: expected memory apart from x"):
        ops.grouped_linear(x, np.ones((2, 8, 8), F32), offsets, out=x)
    with pytest.raises(TypeError, match="weight: expected a tensor or ExpertWeights, got list"):
        ops.grouped_linear(x, [1], offsets)
