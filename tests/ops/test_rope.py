from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import ernie_kernels as ek
import reference_vision
from ernie_kernels import ops

import reference
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]
THETA = 500000.0


def positions_of(num_tokens: int) -> np.ndarray:
    """From 0 to the longest context of the family, and past it."""
    return np.geomspace(1, 2**21, num_tokens).astype(np.int64) - 1


def is_correctly_rounded(table, expected: np.ndarray) -> bool:
    step = np.spacing(np.abs(expected).astype(np.float32))
    # Half a step, and the hair that double rounding adds.
    return bool(np.all(np.abs(reference.f64(table) - expected) <= 0.5001 * step))


@pytest.mark.parametrize("num_tokens", [1, 2, 65])
@pytest.mark.parametrize(("head_dim", "theta"), [(2, THETA), (6, 10000.0), (128, THETA)])
def test_table_is_correctly_rounded(device, num_tokens, head_dim, theta):
    positions = positions_of(num_tokens)
    out = poisoned((num_tokens, head_dim), F32, device)

    assert ops.rope_table(on(positions, device), head_dim, theta=theta, out=out) is out

    assert is_correctly_rounded(out, reference.rope_table(positions, head_dim, theta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 1, 2), (3, 2, 1, 6), (5, 3, 2, 30), (7, 16, 2, 128), (150, 4, 1, 64)],
)
def test_rope_matches_reference(device, rng, dtype, num_tokens, num_heads, num_kv_heads, head_dim):
    query = reference.random(rng, (num_tokens, num_heads, head_dim), dtype)
    key = reference.random(rng, (num_tokens, num_kv_heads, head_dim), dtype)
    positions = positions_of(num_tokens)
    rotated = [ek.from_numpy(x, device) for x in (query, key)]

    result = ops.rope(*rotated, on(positions, device), theta=THETA)

    assert result[0] is rotated[0]
    assert result[1] is rotated[1]
    table = reference.rope_table(positions, head_dim, THETA)
    for x, before in zip(rotated, (query, key), strict=True):
        expected, magnitude = reference.rope(before, table)
        reference.check(x, expected, magnitude=magnitude, terms=2)


def test_a_given_table_gives_the_same_bits(device, rng):
    positions = on(positions_of(9), device)
    key = reference.random(rng, (9, 2, 16), BF16)
    table = ops.rope_table(positions, 16, theta=THETA)
    once, twice = ([ek.from_numpy(key, device), ek.from_numpy(key + key, device)] for _ in range(2))
    ops.rope(*once, positions, theta=THETA)
    ops.rope(*twice, positions, theta=THETA, table=table)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a.numpy().view(np.uint16), b.numpy().view(np.uint16))


def test_position_zero_turns_nothing(device, rng):
    query = ek.from_numpy(reference.random(rng, (2, 3, 8), BF16), device)
    key = ek.from_numpy(reference.random(rng, (2, 1, 8), BF16), device)
    before = query.numpy().copy(), key.numpy().copy()
    ops.rope(query, key, on(np.zeros(2, np.int64), device), theta=THETA)
    np.testing.assert_array_equal(query.numpy(), before[0])
    np.testing.assert_array_equal(key.numpy(), before[1])


def test_scores_depend_on_the_distance_alone(device, rng):
    """The reason for the rotation, and a check of its direction by another route."""
    query, key = (np.repeat(reference.random(rng, (1, 1, 64), F32), 4, axis=0) for _ in range(2))
    positions = np.array([0, 5, 1000, 70000])
    rotated_query, rotated_key = query.copy(), key.copy()
    if device == "cuda":
        rotated_query, rotated_key = (ek.from_numpy(x, device) for x in (query, key))
    ops.rope(rotated_query, rotated_key, on(positions + 3, device), theta=10000.0)
    late_query = reference.f64(rotated_query)
    early_query, early_key = (ek.from_numpy(x, device) for x in (query, key))
    ops.rope(early_query, early_key, on(positions, device), theta=10000.0)
    scores = (late_query * reference.f64(early_key)).sum(-1)
    assert np.ptp(scores) < 0.05
    assert np.abs(scores).min() > 0.05


def test_rope_rotates_heads_of_one_buffer(device, rng):
    """Query, key and value side by side, as a fused projection leaves them."""
    before = reference.random(rng, (5, 8, 20), BF16)
    fused = ek.from_numpy(before, device)
    positions = np.arange(5) * 1000

    ops.rope(fused[:, :4, 2:18], fused[:, 4:6, 2:18], on(positions, device), theta=THETA)

    table = reference.rope_table(positions, 16, THETA)
    expected, magnitude = reference.rope(before[:, :6, 2:18], table)
    after = fused.numpy()
    reference.check(np.ascontiguousarray(after[:, :6, 2:18]), expected, magnitude=magnitude)
    after[:, :6, 2:18] = before[:, :6, 2:18]
    np.testing.assert_array_equal(after.view(np.uint16), before.view(np.uint16))


def test_a_token_does_not_depend_on_the_batch(device, rng):
    before = reference.random(rng, (40, 4, 128), BF16)
    positions = rng.integers(0, 100000, 40)
    together = ek.from_numpy(before, device)
    ops.rope(together[:, :3], together[:, 3:], on(positions, device), theta=THETA)
    for i in (0, 17, 39):
        alone = ek.from_numpy(before[i : i + 1], device)
        ops.rope(alone[:, :3], alone[:, 3:], on(positions[i : i + 1], device), theta=THETA)
        np.testing.assert_array_equal(
            alone.numpy().view(np.uint16)[0], together.numpy().view(np.uint16)[i]
        )


def media_positions(rng, rows: int, num_tokens: int) -> np.ndarray:
    return rng.integers(0, 200000, (rows, num_tokens))


@pytest.mark.parametrize("num_tokens", [1, 65])
@pytest.mark.parametrize(
    ("head_dim", "freq_allocation"), [(2, 0), (2, 1), (6, 1), (46, 20), (128, 20), (128, 64)]
)
def test_mrope_table_turns_each_pair_by_its_axis(
    device, rng, num_tokens, head_dim, freq_allocation
):
    positions = media_positions(rng, 3, num_tokens)
    out = poisoned((num_tokens, head_dim), F32, device)
    arguments = {"theta": THETA, "freq_allocation": freq_allocation}

    assert ops.mrope_table(on(positions, device), head_dim, **arguments, out=out) is out

    assert is_correctly_rounded(out, reference_vision.mrope_table(positions, head_dim, **arguments))


def test_mrope_table_of_equal_positions_is_the_text_table(device):
    positions = positions_of(65)
    text = ops.rope_table(on(positions, device), 128, theta=THETA).numpy()
    media = ops.mrope_table(on(np.stack([positions] * 3), device), 128, theta=THETA).numpy()
    np.testing.assert_array_equal(media.view(np.uint32), text.view(np.uint32))


def test_mrope_table_keeps_the_last_twenty_pairs_for_time(device):
    """What the released models do, written out: heads of 128."""
    axes = np.eye(3, dtype=np.int64) * 7
    turned = [
        ops.mrope_table(on(np.ascontiguousarray(axis[:, None]), device), 128, theta=THETA).numpy()
        for axis in axes
    ]
    moves = [table[0, 1::2] != 0 for table in turned]  # the sines of the pairs
    np.testing.assert_array_equal(np.flatnonzero(moves[0]), np.arange(44, 64))
    np.testing.assert_array_equal(np.flatnonzero(moves[1]), np.arange(0, 44, 2))
    np.testing.assert_array_equal(np.flatnonzero(moves[2]), np.arange(1, 44, 2))


@pytest.mark.parametrize("num_tokens", [1, 65])
@pytest.mark.parametrize("head_dim", [4, 12, 80, 128])
def test_rope_2d_table_holds_y_then_x(device, rng, num_tokens, head_dim):
    positions = media_positions(rng, 2, num_tokens)
    out = poisoned((num_tokens, head_dim), F32, device)

    assert ops.rope_2d_table(on(positions, device), head_dim, out=out) is out

    assert is_correctly_rounded(out, reference_vision.rope_2d_table(positions, head_dim, 10000.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 1, 2), (3, 2, 1, 12), (4, 2, 1, 24), (5, 3, 2, 30), (7, 16, 16, 80), (50, 4, 1, 64)],
)
def test_rope_2d_matches_reference(
    device, rng, dtype, num_tokens, num_heads, num_kv_heads, head_dim
):
    query = reference.random(rng, (num_tokens, num_heads, head_dim), dtype)
    key = reference.random(rng, (num_tokens, num_kv_heads, head_dim), dtype)
    angle = rng.uniform(-4, 4, (num_tokens, head_dim // 2))
    table = np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(F32)
    rotated = [ek.from_numpy(x, device) for x in (query, key)]

    result = ops.rope_2d(*rotated, on(table, device))

    assert result[0] is rotated[0]
    assert result[1] is rotated[1]
    for x, before in zip(rotated, (query, key), strict=True):
        expected, magnitude = reference_vision.rope_2d(before, reference.f64(table))
        reference.check(x, expected, magnitude=magnitude, terms=2)


@pytest.mark.parametrize("begin", [0, 2])  # halves of heads on 16 bytes, and off them
def test_rope_2d_rotates_heads_of_one_buffer(device, rng, begin):
    """Query, key and value side by side, as a fused projection leaves them."""
    before = reference.random(rng, (5, 12, 84), BF16)
    fused = ek.from_numpy(before, device)
    positions = media_positions(rng, 2, 5)
    table = ops.rope_2d_table(on(positions, device), 80)
    heads = slice(begin, begin + 80)

    ops.rope_2d(fused[:, :4, heads], fused[:, 4:8, heads], table)

    expected, magnitude = reference_vision.rope_2d(before[:, :8, heads], reference.f64(table))
    after = fused.numpy()
    reference.check(np.ascontiguousarray(after[:, :8, heads]), expected, magnitude=magnitude)
    after[:, :8, heads] = before[:, :8, heads]
    np.testing.assert_array_equal(after.view(np.uint16), before.view(np.uint16))


def test_rope_2d_of_a_token_does_not_depend_on_the_batch(device, rng):
    before = reference.random(rng, (40, 4, 80), BF16)
    positions = media_positions(rng, 2, 40)
    together = ek.from_numpy(before, device)
    ops.rope_2d(together[:, :3], together[:, 3:], ops.rope_2d_table(on(positions, device), 80))
    for i in (0, 17, 39):
        alone = ek.from_numpy(before[i : i + 1], device)
        table = ops.rope_2d_table(on(positions[:, i : i + 1].copy(), device), 80)
        ops.rope_2d(alone[:, :3], alone[:, 3:], table)
        np.testing.assert_array_equal(
            alone.numpy().view(np.uint16)[0], together.numpy().view(np.uint16)[i]
        )


@pytest.mark.parametrize(("num_tokens", "num_heads"), [(0, 2), (3, 0)])
def test_rope_of_nothing(device, num_tokens, num_heads):
    query = on(np.ones((num_tokens, num_heads, 8), np.float32), device)
    key = on(np.ones((num_tokens, 1, 8), np.float32), device)
    ops.rope(query, key, on(np.zeros(num_tokens, np.int64), device), theta=THETA)
    ops.rope_2d(query, key, on(np.zeros((num_tokens, 8), np.float32), device))
    assert ops.mrope_table(on(np.zeros((3, 0), np.int64), device), 46, theta=THETA).shape == (0, 46)
    assert ops.rope_2d_table(on(np.zeros((2, 0), np.int64), device), 8).shape == (0, 8)
    assert ops.rope_table(on(np.zeros(0, np.int64), device), 8, theta=THETA).shape == (0, 8)


def test_rope_refuses_a_negative_position_and_rotates_nothing():
    query, key = np.ones((2, 1, 4), np.float32), np.ones((2, 1, 4), np.float32)
    with pytest.raises(ek.ArgumentError, match="positions: expected values >= 0, got -1 at token"):
        ops.rope(query, key, np.array([7, -1]), theta=THETA)
    assert (query == 1).all()
    assert (key == 1).all()


@pytest.mark.parametrize("theta", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_rope_refuses_a_theta_that_is_no_base(theta):
    with pytest.raises(ek.ArgumentError, match="theta: expected a finite value > 0"):
        ops.rope_table(np.zeros(1, np.int64), 4, theta=theta)


def test_rope_names_the_wrong_argument():
    odd, positions = np.ones((2, 1, 5), np.float32), np.zeros(2, np.int64)
    even = np.ones((2, 1, 4), np.float32)
    with pytest.raises(ek.ArgumentError, match="rope: query: expected an even head_dim"):
        ops.rope(odd, odd.copy(), positions, theta=THETA)
    with pytest.raises(ek.ArgumentError, match="head_dim: expected an even value >= 2, got 5"):
        ops.rope_table(positions, 5, theta=THETA)
    with pytest.raises(ek.ArgumentError, match="out: expected shape"):
        ops.rope_table(positions, 6, theta=THETA, out=np.ones((2, 4), np.float32))
    with pytest.raises(ek.ArgumentError, match=r"positions: expected shape \[num_tokens=2\]"):
        ops.rope(even, even.copy(), np.zeros(3, np.int64), theta=THETA)
    with pytest.raises(ek.ArgumentError, match="key: expected memory apart from query"):
        ops.rope(even, even, positions, theta=THETA)
    joint = np.ones((2, 3, 4), np.float32)
    with pytest.raises(ek.ArgumentError, match="key: expected memory apart from query"):
        ops.rope(joint[:, :2], joint[:, 1:], positions, theta=THETA)


def test_tables_of_several_axes_name_the_wrong_argument():
    three, two = np.zeros((3, 2), np.int64), np.zeros((2, 2), np.int64)
    with pytest.raises(ek.ArgumentError, match=r"mrope_table: positions: expected shape \[3=3"):
        ops.mrope_table(two, 46, theta=THETA)
    with pytest.raises(ek.ArgumentError, match=r"rope_2d_table: positions: expected shape \[2=2"):
        ops.rope_2d_table(three, 8)
    with pytest.raises(ek.ArgumentError, match="head_dim: expected a multiple of 4 that is > 0"):
        ops.rope_2d_table(two, 6)
    for wrong in (-1, 24, 2**40):
        with pytest.raises(ek.ArgumentError, match="freq_allocation: expected a value from 0 to"):
            ops.mrope_table(three, 46, theta=THETA, freq_allocation=wrong)
    with pytest.raises(ek.ArgumentError, match="mrope_table: theta: expected a finite value > 0"):
        ops.mrope_table(three, 46, theta=0.0)
    three[2, 1] = -5
    with pytest.raises(ek.ArgumentError, match="values >= 0, got -5 at token 1 of row 2"):
        ops.mrope_table(three, 46, theta=THETA)
    query = np.ones((2, 1, 8), np.float32)
    with pytest.raises(ek.ArgumentError, match=r"rope_2d: table: expected shape .*head_dim=8"):
        ops.rope_2d(query, query.copy(), np.ones((2, 4), np.float32))
    with pytest.raises(ek.ArgumentError, match="rope_2d: key: expected memory apart from query"):
        ops.rope_2d(query, query, np.ones((2, 8), np.float32))


def transformers_config(head_dim: int, rope_type: str, theta: float):
    parameters = {"rope_type": rope_type, "rope_theta": theta}
    return SimpleNamespace(
        head_dim=head_dim, max_position_embeddings=512, rope_parameters=parameters
    )


@pytest.mark.oracle
def test_the_turns_of_media_and_patches_are_those_of_transformers(rng):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe")
    query, key = (reference.random(rng, (9, heads, 128), F32) for heads in (4, 2))
    positions = rng.integers(0, 300, (3, 9))
    embedding = modeling.Ernie4_5_VLMoeTextRotaryEmbedding(
        transformers_config(128, "default", THETA)
    )
    expected = modeling.apply_rotary_pos_emb(
        *(torch.from_numpy(x.copy()) for x in (query, key)),
        *(angles[0] for angles in embedding(torch.empty(0), torch.from_numpy(positions)[:, None])),
    )
    table = ops.mrope_table(positions, 128, theta=THETA)
    for ours, theirs in zip(
        ops.rope(query, key, None, theta=THETA, table=table), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)

    query, key = (reference.random(rng, (9, 3, 80), F32) for _ in range(2))
    grid = rng.integers(0, 64, (2, 9))
    embedding = modeling.Ernie4_5_VLMoeVisionRotaryEmbedding(
        transformers_config(80, "axial", 10000.0)
    )
    expected = modeling.apply_rotary_pos_emb_vision(
        *(torch.from_numpy(x.copy()) for x in (query, key)),
        *embedding(torch.empty(0), torch.from_numpy(grid.T.copy())),
    )
    for ours, theirs in zip(
        ops.rope_2d(query, key, ops.rope_2d_table(grid, 80)), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)
