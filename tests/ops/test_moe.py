"""moe_sort, moe_dispatch, moe_combine; test_moe_route.py has the routing."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
import reference_moe
from placement import PLACES, same_bits
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]

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
    for actual, expected in zip(
        results, reference_moe.moe_sort(topk_ids, num_experts), strict=True
    ):
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
    for actual, expected in zip(
        results, reference_moe.moe_sort(topk_ids, num_experts), strict=True
    ):
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
    offsets, inverse, source_rows = reference_moe.moe_sort(topk_ids, num_experts)
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
    expected[:, 2:18] = x[reference_moe.moe_sort(topk_ids, 3)[2]]
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
    expected = reference_moe.moe_sort(nearest, num_experts)
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
    expected, magnitude = reference_moe.moe_combine(x, inverse, weights, shared)
    to_the_bit = reference_moe.moe_combine_float32(x, inverse, weights, shared)
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
    expected[:, 1:71] = reference_moe.moe_combine_float32(x, inverse, weights, shared)
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
    good = reference_moe.moe_combine_float32(x, inverse, weights, None)
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
    same_bits(out, reference_moe.moe_combine_float32(x, np.clip(inverse, 0, 5), weights, None))


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
    _, expected_inverse, source_rows = reference_moe.moe_sort(topk_ids, 9)
    same_bits(permuted, x[source_rows])
    same_bits(
        out, reference_moe.moe_combine_float32(x[source_rows], expected_inverse, weights, None)
    )


@pytest.mark.parametrize("num_experts", [8, 64])
def test_what_is_dispatched_comes_back(device, rng, num_experts):
    """Experts that do nothing, weighed by the router: a convex combination of one row is the row."""
    x = reference.random(rng, (21, 48), F32)
    logits = reference.random(rng, (21, num_experts), F32)
    weights, ids = ops.moe_route(on(logits, device), on(np.zeros(num_experts, F32), device), 4)
    permuted, _, inverse = ops.moe_dispatch(on(x, device), ids, num_experts)
    out = ops.moe_combine(permuted, inverse, weights)
    np.testing.assert_allclose(out.numpy(), x, rtol=1e-6)


def test_no_tokens_have_no_experts(device):
    logits, bias = on(np.empty((0, 8), np.float32), device), on(np.zeros(8, np.float32), device)
    weights, ids = ops.moe_route(logits, bias, 2)
    assert weights.shape == ids.shape == (0, 2)
    permuted, offsets, inverse = ops.moe_dispatch(on(np.empty((0, 5), F32), device), ids, 8)
    assert permuted.shape == (0, 5)
    np.testing.assert_array_equal(offsets.numpy(), np.zeros(9))
    np.testing.assert_array_equal(ops.moe_sort(ids, 4000)[0].numpy(), np.zeros(4001))
    assert ops.moe_combine(permuted, inverse, weights).shape == (0, 5)
