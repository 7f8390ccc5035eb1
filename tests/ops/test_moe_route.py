"""moe_route; the other ops of the family are in test_moe.py."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
import reference_moe
from placement import at_odd_addresses, same_bits
from reference import F32, on, poisoned

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
    expected_weights, expected_ids, _ = reference_moe.moe_route(logits, bias, top_k, **options)
    np.testing.assert_array_equal(ids, expected_ids)
    same_bits(weights, expected_weights)
    check_against_float64(logits, bias, weights, ids, **options)


def check_against_float64(logits, bias, weights, ids, norm_min=1e-12) -> None:
    """Ids in the order of the scores, as far as float32 can tell those apart; and the weights."""
    p, relative = reference_moe.moe_softmax(logits)
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
    expected_weights, expected_ids, _ = reference_moe.moe_route(bad, bias, top_k)
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
    expected_weights, expected_ids, _ = reference_moe.moe_route(logits, bias, 4)
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
