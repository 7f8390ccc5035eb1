from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]


def bits(x) -> np.ndarray:
    x = np.ascontiguousarray(x.numpy() if isinstance(x, ek.Tensor) else x)
    return x.view(np.uint8)


def same_bits(actual, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(bits(actual), bits(expected))


def in_wider_rows(array: np.ndarray, device: str, left: int, width: int):
    """The same rows inside wider ones, from column `left` on."""
    wide = np.zeros((len(array), width), array.dtype)
    wide[:, left : left + array.shape[1]] = array
    return ek.from_numpy(wide, device)[:, left : left + array.shape[1]]


def at_odd_addresses(array: np.ndarray, device: str):
    """Every row one element beyond a multiple of 16 bytes."""
    return in_wider_rows(array, device, 1, array.shape[1] // 16 * 16 + 32)


def at_odd_strides(array: np.ndarray, device: str):
    """The first row at such a multiple, the second, where its width is one, not."""
    return in_wider_rows(array, device, 0, array.shape[1] + 1)


PLACES = [on, at_odd_addresses, at_odd_strides]


# ------------------------------------------------------------------------------------------ route

# Around the width of a warp and of registers, and beyond the kernels that keep a row in those.
SHAPES = [
    (1, 64, 6), (9, 64, 8), (3, 8, 3), (2, 1, 1), (5, 2, 2), (3, 31, 4), (4, 33, 32), (2, 33, 33),
    (3, 65, 7), (2, 255, 8), (3, 256, 32), (2, 257, 5), (2, 300, 40), (1, 64, 64), (2, 512, 8),
    (1, 1000, 999), (1, 4096, 8),
]  # fmt: skip


def route(logits, bias, top_k, device, **options):
    weights, ids = ops.moe_route(on(logits, device), on(bias, device), top_k, **options)
    return weights.numpy(), ids.numpy()


def check_route(logits, bias, top_k, device, **options) -> None:
    weights, ids = route(logits, bias, top_k, device, **options)
    expected_weights, expected_ids, _ = reference.moe_route(logits, bias, top_k, **options)
    np.testing.assert_array_equal(ids, expected_ids)
    same_bits(weights, expected_weights)
    check_against_float64(logits, bias, weights, ids, **options)


def check_against_float64(logits, bias, weights, ids, norm_min=1e-12) -> None:
    """Ids in the order of the scores, as far as float32 can tell those apart; and the weights."""
    p, relative = reference.moe_softmax(logits)
    score = p + reference.f64(bias)
    noise = p * relative + 2.0**-24 * np.abs(score)

    def chosen(values):
        return np.take_along_axis(values, ids, 1)

    others = np.ones(score.shape, bool)
    np.put_along_axis(others, ids.astype(np.int64), False, 1)
    assert (others.sum(1) == score.shape[1] - ids.shape[1]).all()  # the ids are distinct
    lowest = chosen(score + noise).min(1, keepdims=True)
    assert not (others & (score - noise > lowest)).any()
    assert (chosen(score + noise)[:, :-1] >= chosen(score - noise)[:, 1:]).all()

    expected = chosen(p) / np.maximum(chosen(p).sum(1, keepdims=True), norm_min)
    slack = chosen(relative) + chosen(relative).max(1, keepdims=True) + 40 * 2.0**-24
    assert (np.abs(weights - expected) <= slack * expected + 2.0**-140 / norm_min).all()


@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), SHAPES)
def test_route_matches_reference(device, rng, num_tokens, num_experts, top_k):
    logits = reference.random(rng, (num_tokens, num_experts), F32, scale=2.0)
    bias = reference.random(rng, (num_experts,), F32, scale=0.05)
    check_route(logits, bias, top_k, device)


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (100, 8), (300, 10), (40, 40)])
def test_of_equal_scores_the_lower_id_comes_first(device, rng, num_experts, top_k):
    logits = rng.integers(-1, 2, (6, num_experts)).astype(np.float32)  # many of each
    logits[0] = 0.0
    logits[1] = -0.0
    logits[1, ::2] = 0.0
    bias = np.zeros(num_experts, np.float32)
    bias[1::2] = -0.0
    check_route(logits, bias, top_k, device)
    _, ids = route(logits, bias, top_k, device)
    for row, got in zip(logits, ids, strict=True):
        np.testing.assert_array_equal(got, np.argsort(-row, kind="stable")[:top_k])
    # Equal sums of unequal terms: a bias that hides every difference.
    _, ids = route(logits, np.full(num_experts, 2.0**24, np.float32), top_k, device)
    np.testing.assert_array_equal(ids, np.tile(np.arange(top_k), (6, 1)))


@pytest.mark.parametrize("num_experts", [64, 300])
def test_the_bias_chooses_and_never_weighs(device, rng, num_experts):
    logits = reference.random(rng, (5, num_experts), F32)
    bias = np.full(num_experts, -1e30, np.float32)
    wanted = [7, num_experts - 1, 0]
    bias[wanted] = [1e30, 2.0, 1.0]
    check_route(logits, bias, 3, device)
    weights, ids = route(logits, bias, 3, device)
    np.testing.assert_array_equal(ids, np.tile(wanted, (5, 1)))
    p = np.exp(reference.f64(logits))[:, wanted]
    np.testing.assert_allclose(weights, p / p.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("num_experts", [33, 64, 260])
def test_route_of_extreme_logits(device, rng, num_experts):
    """Far apart, all far below zero, denormal: finite numbers have their experts."""
    size = np.finfo(np.float32).max
    rows = [
        np.linspace(0, -110, num_experts),
        np.where(rng.random(num_experts) < 0.5, size, -size),
        np.full(num_experts, -size),
        -1e6 - rng.random(num_experts) * 100,
        rng.random(num_experts) * 1e-42,
        np.where(np.arange(num_experts) == 11, 1000.0, rng.standard_normal(num_experts)),
    ]
    logits = np.array(rows).astype(np.float32)
    bias = reference.random(rng, (num_experts,), F32, scale=0.01)
    check_route(logits, bias, 6, device)
    check_route(logits, np.zeros_like(bias), 20, device)


@pytest.mark.parametrize("norm_min", [1e-12, 0.3, 2.0])
def test_weights_of_little_probability_are_not_blown_up(device, norm_min):
    logits = np.full((2, 64), -60.0, np.float32)
    logits[:, 0] = 0.0
    logits[1] -= np.arange(64)
    bias = np.zeros(64, np.float32)
    bias[3:6] = 5.0
    check_route(logits, bias, 3, device, norm_min=norm_min)
    weights, ids = route(logits, bias, 3, device, norm_min=norm_min)
    assert set(ids[0]) == {3, 4, 5}
    np.testing.assert_allclose(weights[0], np.exp(-60.0) / norm_min, rtol=1e-4)


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (200, 8), (300, 5), (50, 40)])
def test_a_row_that_is_not_finite_is_flagged_and_no_other_changes(device, rng, num_experts, top_k):
    good = reference.random(rng, (8, num_experts), F32)
    bias = reference.random(rng, (num_experts,), F32, scale=0.1)
    bad = good.copy()
    bad[0, -1], bad[2, 0], bad[3, num_experts // 2] = BAD
    bad[5], bad[6], bad[7] = np.nan, -np.inf, np.inf
    is_bad = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    flags = ek.from_numpy(np.array([0, 7, 9, 0, 0, 0, 1, 0], np.uint8), device)

    weights, ids = route(bad, bias, top_k, device, flags=flags)

    np.testing.assert_array_equal(flags.numpy(), [1, 7, 1, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(ids[is_bad], np.tile(np.arange(top_k), (6, 1)))
    assert np.isnan(weights[is_bad]).all()
    good_weights, good_ids = route(good, bias, top_k, device)
    np.testing.assert_array_equal(ids[~is_bad], good_ids[~is_bad])
    same_bits(weights[~is_bad], good_weights[~is_bad])
    expected_weights, expected_ids, _ = reference.moe_route(bad, bias, top_k)
    np.testing.assert_array_equal(ids, expected_ids)
    same_bits(weights, expected_weights)
    route(bad, bias, top_k, device)  # flags may be left out


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("num_experts", [64, 300])
def test_a_bias_that_is_not_finite_flags_all_rows(device, rng, num_experts, bad):
    bias = np.zeros(num_experts, np.float32)
    bias[num_experts - 3] = bad
    flags = ek.from_numpy(np.zeros(4, np.uint8), device)
    logits = reference.random(rng, (4, num_experts), F32)
    weights, ids = route(logits, bias, 3, device, flags=flags)
    assert flags.numpy().all()
    assert np.isnan(weights).all()
    np.testing.assert_array_equal(ids, np.tile(np.arange(3), (4, 1)))


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (300, 10)])
def test_a_row_routes_alone_as_among_others(device, rng, num_experts, top_k):
    logits = reference.random(rng, (37, num_experts), F32)
    bias = reference.random(rng, (num_experts,), F32, scale=0.02)
    weights, ids = route(logits, bias, top_k, device)
    before = ek.num_threads()
    for threads in (1, 5):
        ek.set_num_threads(threads)
        for rows in (slice(0, 1), slice(30, 37), slice(0, 37)):
            some_weights, some_ids = route(logits[rows], bias, top_k, device)
            same_bits(some_weights, weights[rows])
            np.testing.assert_array_equal(some_ids, ids[rows])
    ek.set_num_threads(before)


def test_route_reads_strided_rows_and_writes_where_told(device, rng):
    logits = reference.random(rng, (3, 65), F32)
    bias = reference.random(rng, (65,), F32)
    expected_weights, expected_ids, _ = reference.moe_route(logits, bias, 4)
    topk_weights = poisoned((3, 4), F32, device)
    topk_ids = ek.from_numpy(np.full((3, 4), -1, np.int32), device)
    results = ops.moe_route(
        at_odd_addresses(logits, device), on(bias, device), 4,
        topk_weights=topk_weights, topk_ids=topk_ids,
    )  # fmt: skip
    assert results[0] is topk_weights
    assert results[1] is topk_ids
    same_bits(topk_weights, expected_weights)
    same_bits(topk_ids, expected_ids)


def test_no_tokens_have_no_experts(device):
    logits, bias = on(np.empty((0, 8), np.float32), device), on(np.zeros(8, np.float32), device)
    weights, ids = ops.moe_route(logits, bias, 2)
    assert weights.shape == ids.shape == (0, 2)
    permuted, offsets, inverse = ops.moe_dispatch(on(np.empty((0, 5), F32), device), ids, 8)
    assert permuted.shape == (0, 5)
    np.testing.assert_array_equal(offsets.numpy(), np.zeros(9))
    np.testing.assert_array_equal(ops.moe_sort(ids, 4000)[0].numpy(), np.zeros(4001))
    assert ops.moe_combine(permuted, inverse, weights).shape == (0, 5)


@pytest.mark.parametrize(
    ("top_k", "options", "message"),
    [
        (0, {}, "top_k: expected a value from 1 to .*, got 0"),
        (9, {}, "top_k: expected a value from 1 to num_experts=8, got 9"),
        (-1, {}, "top_k: expected a value from 1 to .*, got -1"),
        (2, {"norm_min": 0.0}, "norm_min: expected a finite value > 0, got 0"),
        (2, {"norm_min": 1e-60}, "norm_min: expected a finite value > 0, got 0"),
        (2, {"norm_min": float("inf")}, "norm_min: expected a finite value > 0, got inf"),
        (2, {"norm_min": float("nan")}, "norm_min: expected a finite value > 0, got nan"),
    ],
)
def test_route_refuses_numbers_out_of_range(top_k, options, message):
    logits, bias = np.zeros((2, 8), np.float32), np.zeros(8, np.float32)
    with pytest.raises(ek.ArgumentError, match=f"moe_route: {message}"):
        ops.moe_route(logits, bias, top_k, **options)


@pytest.mark.parametrize("num_experts", [0, 4097])
def test_route_refuses_too_many_experts_and_none(num_experts):
    logits, bias = np.zeros((2, num_experts), np.float32), np.zeros(num_experts, np.float32)
    with pytest.raises(ek.ArgumentError, match="router_logits: expected 1 to 4096 experts"):
        ops.moe_route(logits, bias, 1)


@pytest.mark.oracle
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 3), (64, 6), (64, 8)])
def test_route_matches_transformers(rng, num_experts, top_k):
    import torch
    from transformers import Ernie4_5_MoeConfig
    from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter

    config = Ernie4_5_MoeConfig(hidden_size=num_experts, moe_num_experts=num_experts, moe_k=top_k)
    router = Ernie4_5_MoeTopKRouter(config)
    bias = reference.random(rng, (num_experts,), F32, scale=0.02)
    logits = reference.random(rng, (200, num_experts), F32)
    with torch.no_grad():
        router.weight.copy_(torch.eye(num_experts))
        router.moe_statics.e_score_correction_bias.copy_(torch.from_numpy(bias)[None])
        theirs, their_weights, their_ids = router(torch.from_numpy(logits))
    np.testing.assert_array_equal(theirs.numpy(), logits)
    weights, ids = route(logits, bias, top_k, "cpu")
    # Their softmax may differ in the last bit, and so may the order of scores closer than that.
    same = (ids == their_ids.numpy()).all(1)
    assert same.mean() > 0.98
    np.testing.assert_allclose(weights[same], their_weights.numpy()[same], rtol=2e-6)


# -------------------------------------------------------------------------------- sort, dispatch

# Tokens, slots, experts: one block with one step and with all eight, and tiles of 1024 and more.
SORTS = [
    (1, 1, 1), (1, 6, 64), (1, 8, 600), (3, 2, 5), (37, 8, 64), (256, 8, 64), (257, 8, 64),
    (300, 7, 512), (411, 5, 513), (700, 3, 2), (1100, 2, 40), (5, 3, 4096),
]  # fmt: skip


def random_ids(rng, num_tokens, top_k, num_experts, *, pattern="uniform"):
    shape = (num_tokens, top_k)
    if pattern == "one expert":
        return np.full(shape, num_experts - 1, np.int32)
    if pattern == "few experts":  # most stay empty, the first and the last among them
        some = 1 + rng.integers(0, max(num_experts - 2, 1), 3)
        return rng.choice(np.minimum(some, num_experts - 1), shape).astype(np.int32)
    return rng.integers(0, num_experts, shape).astype(np.int32)


@pytest.mark.parametrize("pattern", ["uniform", "one expert", "few experts"])
@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts"), SORTS)
def test_sort_is_stable(device, rng, num_tokens, top_k, num_experts, pattern):
    topk_ids = random_ids(rng, num_tokens, top_k, num_experts, pattern=pattern)
    results = ops.moe_sort(on(topk_ids, device), num_experts)
    for actual, expected in zip(results, reference.moe_sort(topk_ids, num_experts), strict=True):
        same_bits(actual, expected)


@pytest.mark.parametrize("num_experts", [7, 600])
def test_sort_writes_where_told(device, rng, num_experts):
    topk_ids = random_ids(rng, 50, 3, num_experts)
    out = {
        "expert_offsets": ek.from_numpy(np.full(num_experts + 1, -1), device),
        "inverse": ek.from_numpy(np.full((50, 3), -1, np.int32), device),
        "source_rows": ek.from_numpy(np.full(150, -1, np.int32), device),
    }
    results = ops.moe_sort(on(topk_ids, device), num_experts, **out)
    assert all(a is b for a, b in zip(results, out.values(), strict=True))
    for actual, expected in zip(results, reference.moe_sort(topk_ids, num_experts), strict=True):
        same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_experts", "hidden_size"),
    [(1, 6, 64, 40), (5, 1, 3, 1), (9, 8, 64, 17), (33, 2, 4, 264), (300, 7, 70, 8)],
)
def test_dispatch_copies_rows_in_expert_order(
    device, rng, dtype, num_tokens, top_k, num_experts, hidden_size
):
    x = reference.random(rng, (num_tokens, hidden_size), dtype)
    x[0, 0] = np.nan
    topk_ids = random_ids(rng, num_tokens, top_k, num_experts)
    offsets, inverse, source_rows = reference.moe_sort(topk_ids, num_experts)
    for given in (place(x, device) for place in PLACES):
        permuted, got_offsets, got_inverse = ops.moe_dispatch(
            given, on(topk_ids, device), num_experts
        )
        same_bits(permuted, x[source_rows])
        same_bits(got_offsets, offsets)
        same_bits(got_inverse, inverse)


def test_dispatch_writes_strided_rows(device, rng):
    x, topk_ids = reference.random(rng, (4, 16), BF16), random_ids(rng, 4, 2, 3)
    wide = ek.from_numpy(np.zeros((8, 21), BF16), device)
    ops.moe_dispatch(on(x, device), on(topk_ids, device), 3, permuted=wide[:, 2:18])
    expected = np.zeros((8, 21), BF16)
    expected[:, 2:18] = x[reference.moe_sort(topk_ids, 3)[2]]
    same_bits(wide, expected)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, -(2**31)])
def test_an_id_out_of_range_is_refused_and_nothing_written(bad):
    topk_ids = np.array([[0, 1], [2, 3], [4, bad]], np.int32)
    offsets, inverse = np.full(6, -1), np.full((3, 2), -1, np.int32)
    rows, permuted = np.full(6, -1, np.int32), np.full((6, 4), -1, np.float32)
    message = f"topk_ids: expected experts from 0 to 4, got {bad} at token 2, slot 1"
    with pytest.raises(ek.ArgumentError, match=f"^moe_sort: {message}"):
        ops.moe_sort(topk_ids, 5, expert_offsets=offsets, inverse=inverse, source_rows=rows)
    with pytest.raises(ek.ArgumentError, match=f"^moe_dispatch: {message}"):
        ops.moe_dispatch(
            np.ones((3, 4), np.float32), topk_ids, 5,
            permuted=permuted, expert_offsets=offsets, inverse=inverse,
        )  # fmt: skip
    assert all((a == -1).all() for a in (offsets, inverse, rows, permuted))


@pytest.mark.cuda
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(20, 5), (700, 5), (20, 600)])
def test_a_gpu_takes_the_nearest_expert_for_an_id_out_of_range(rng, num_tokens, num_experts):
    """The host does not see the ids: no address may come of a wrong one."""
    topk_ids = random_ids(rng, num_tokens, 3, num_experts)
    topk_ids[rng.random(topk_ids.shape) < 0.2] = -(2**31)
    topk_ids[rng.random(topk_ids.shape) < 0.2] = 2**31 - 1
    nearest = np.clip(topk_ids, 0, num_experts - 1)
    x = reference.random(rng, (num_tokens, 6), F32)
    permuted, *_ = ops.moe_dispatch(on(x, "cuda"), on(topk_ids, "cuda"), num_experts)
    results = ops.moe_sort(on(topk_ids, "cuda"), num_experts)
    expected = reference.moe_sort(nearest, num_experts)
    for actual, wanted in zip(results, expected, strict=True):
        same_bits(actual, wanted)
    same_bits(permuted, x[expected[2]])


@pytest.mark.parametrize("num_experts", [0, -1, 4097, 2**62])
def test_sort_and_dispatch_refuse_a_number_of_experts_out_of_range(num_experts):
    topk_ids = np.zeros((2, 2), np.int32)
    message = f"num_experts: expected a value from 1 to 4096, got {num_experts}"
    with pytest.raises(ek.ArgumentError, match=f"^moe_sort: {message}"):
        ops.moe_sort(topk_ids, num_experts)
    with pytest.raises(ek.ArgumentError, match=f"^moe_dispatch: {message}"):
        ops.moe_dispatch(np.ones((2, 4), np.float32), topk_ids, num_experts)


# ---------------------------------------------------------------------------------------- combine


def combine_inputs(rng, dtype, num_tokens, top_k, hidden_size):
    x = reference.random(rng, (num_tokens * top_k, hidden_size), dtype)
    inverse = rng.permutation(len(x)).reshape(num_tokens, top_k).astype(np.int32)
    weights = rng.random((num_tokens, top_k)).astype(np.float32)
    return x, inverse, weights


@pytest.mark.parametrize("with_shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "top_k", "hidden_size"),
    [(1, 6, 2560), (3, 1, 1), (5, 8, 67), (4, 3, 15), (2, 40, 129), (33, 2, 64)],
)
def test_combine_matches_reference(device, rng, dtype, num_tokens, top_k, hidden_size, with_shared):
    x, inverse, weights = combine_inputs(rng, dtype, num_tokens, top_k, hidden_size)
    shared = reference.random(rng, (num_tokens, hidden_size), dtype) if with_shared else None
    expected, magnitude = reference.moe_combine(x, inverse, weights, shared)
    to_the_bit = reference.moe_combine_float32(x, inverse, weights, shared)
    for place in PLACES:
        out = poisoned(expected.shape, dtype, device)
        result = ops.moe_combine(
            place(x, device), on(inverse, device), on(weights, device),
            shared=None if shared is None else place(shared, device), out=out,
        )  # fmt: skip
        assert result is out
        reference.check(out, expected, magnitude=magnitude, terms=top_k + with_shared)
        same_bits(out, to_the_bit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine_adds_to_the_shared_experts_in_place(device, rng, dtype):
    x, inverse, weights = combine_inputs(rng, dtype, 5, 3, 70)
    shared = reference.random(rng, (5, 70), dtype)
    expected = np.zeros((5, 80), dtype)
    expected[:, 1:71] = shared
    wide = ek.from_numpy(expected, device)
    out = wide[:, 1:71]
    ops.moe_combine(on(x, device), on(inverse, device), on(weights, device), shared=out, out=out)
    expected[:, 1:71] = reference.moe_combine_float32(x, inverse, weights, shared)
    same_bits(wide, expected)


def test_combine_refuses_a_shifted_overlap_of_out_and_shared():
    rows = np.zeros((4, 8), np.float32)
    with pytest.raises(ek.ArgumentError, match="moe_combine: out: expected memory apart from sha"):
        ops.moe_combine(
            np.zeros((6, 8), np.float32), np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32),
            shared=rows[:3], out=rows[1:],
        )  # fmt: skip


def test_a_token_that_is_not_finite_spoils_no_other(device, rng):
    x, inverse, weights = combine_inputs(rng, BF16, 6, 2, 40)
    good = reference.moe_combine_float32(x, inverse, weights, None)
    weights[2] = np.nan
    x[inverse[4]] = np.inf
    out = ops.moe_combine(on(x, device), on(inverse, device), on(weights, device)).numpy()
    assert not np.isfinite(out[[2, 4]].astype(np.float32)).any()
    same_bits(out[[0, 1, 3, 5]], good[[0, 1, 3, 5]])


@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1, -(2**31)])
def test_combine_refuses_a_place_out_of_range_and_writes_nothing(bad):
    inverse = np.array([[0, 1], [2, bad], [4, 5]], np.int32)
    out = np.full((3, 4), -1, np.float32)
    message = f"moe_combine: inverse: expected rows from 0 to 5, got {bad} at token 1, slot 1"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.moe_combine(np.ones((6, 4), F32), inverse, np.ones((3, 2), F32), out=out)
    assert (out == -1).all()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_takes_the_nearest_row_for_a_place_out_of_range(rng, dtype):
    x, inverse, weights = combine_inputs(rng, dtype, 3, 2, 20)
    inverse[0] = -1, 6
    inverse[1] = -(2**31), 2**31 - 1
    out = ops.moe_combine(on(x, "cuda"), on(inverse, "cuda"), on(weights, "cuda"))
    same_bits(out, reference.moe_combine_float32(x, np.clip(inverse, 0, 5), weights, None))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_combine_and_dispatch_do_not_depend_on_threads(rng, threads):
    x = reference.random(rng, (150, 96), BF16)
    topk_ids = random_ids(rng, 150, 4, 9)
    weights = rng.random((150, 4)).astype(np.float32)
    before = ek.num_threads()
    ek.set_num_threads(threads)
    permuted, _, inverse = ops.moe_dispatch(x, topk_ids, 9)
    out = ops.moe_combine(permuted, inverse, weights)
    ek.set_num_threads(before)
    _, expected_inverse, source_rows = reference.moe_sort(topk_ids, 9)
    same_bits(permuted, x[source_rows])
    same_bits(out, reference.moe_combine_float32(x[source_rows], expected_inverse, weights, None))


@pytest.mark.parametrize("num_experts", [8, 64])
def test_what_is_dispatched_comes_back(device, rng, num_experts):
    """Experts that do nothing, weighed by the router: a convex combination of one row is the row."""
    x = reference.random(rng, (21, 48), F32)
    logits = reference.random(rng, (21, num_experts), F32)
    weights, ids = ops.moe_route(on(logits, device), on(np.zeros(num_experts, F32), device), 4)
    permuted, _, inverse = ops.moe_dispatch(on(x, device), ids, num_experts)
    out = ops.moe_combine(permuted, inverse, weights)
    np.testing.assert_allclose(out.numpy(), x, rtol=1e-6)
