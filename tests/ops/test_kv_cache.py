from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from placement import bits
from reference import BF16, F32, on

DTYPES = [F32, BF16]
INDEX_TYPES = [np.int32, np.int64]
BLOCK_SIZE = 4


def caches(rng, shape, dtype):
    return reference.random(rng, shape, dtype), reference.random(rng, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_type", INDEX_TYPES)
@pytest.mark.parametrize(
    ("num_tokens", "num_kv_heads", "head_dim"),
    [(1, 1, 1), (5, 3, 7), (17, 2, 128), (300, 4, 64), (9, 8, 128)],
)
def test_write_stores_each_token_in_its_slot(
    device, rng, dtype, index_type, num_tokens, num_kv_heads, head_dim
):
    num_blocks = -(-num_tokens // BLOCK_SIZE) + 2
    key, value = caches(rng, (num_tokens, num_kv_heads, head_dim), dtype)
    before = caches(rng, (num_blocks, num_kv_heads, BLOCK_SIZE, head_dim), dtype)
    slots = rng.permutation(num_blocks * BLOCK_SIZE)[:num_tokens].astype(index_type)
    slots[::5] = -1
    k_cache, v_cache = (ek.from_numpy(c, device) for c in before)

    ops.kv_cache_write(on(key, device), on(value, device), k_cache, v_cache, on(slots, device))

    expected = reference.kv_cache_write(key, value, *before, slots)
    np.testing.assert_array_equal(bits(k_cache), bits(expected[0]))
    np.testing.assert_array_equal(bits(v_cache), bits(expected[1]))


def test_write_reads_the_heads_of_a_fused_projection(device, rng):
    """Key and value as slices of one [num_tokens, heads, head_dim] buffer, wider than they are."""
    fused = reference.random(rng, (6, 10, 12), BF16)
    before = caches(rng, (3, 2, BLOCK_SIZE, 8), BF16)
    slots = np.arange(6, dtype=np.int32)[::-1].copy()
    k_cache, v_cache = (ek.from_numpy(c, device) for c in before)
    tensor = ek.from_numpy(fused, device)

    ops.kv_cache_write(
        tensor[:, 6:8, 3:11], tensor[:, 8:10, 3:11], k_cache, v_cache, on(slots, device)
    )

    expected = reference.kv_cache_write(fused[:, 6:8, 3:11], fused[:, 8:, 3:11], *before, slots)
    np.testing.assert_array_equal(bits(k_cache), bits(expected[0]))
    np.testing.assert_array_equal(bits(v_cache), bits(expected[1]))


def test_write_of_nothing_changes_nothing(device, rng):
    before = caches(rng, (2, 2, BLOCK_SIZE, 8), F32)
    k_cache, v_cache = (ek.from_numpy(c, device) for c in before)
    for slots in (np.empty(0, np.int32), np.full(3, -1, np.int32)):
        key = on(np.ones((len(slots), 2, 8), np.float32), device)
        ops.kv_cache_write(key, key, k_cache, v_cache, on(slots, device))
    np.testing.assert_array_equal(k_cache.numpy(), before[0])
    np.testing.assert_array_equal(v_cache.numpy(), before[1])


@pytest.mark.parametrize("slot", [-2, 8, 2**31 - 1, -(2**31)])
def test_write_refuses_a_slot_out_of_range_and_writes_nothing(rng, slot):
    key = np.ones((3, 1, 4), np.float32)
    k_cache, v_cache = np.zeros((2, 1, BLOCK_SIZE, 4), F32), np.zeros((2, 1, BLOCK_SIZE, 4), F32)
    slots = np.array([0, 1, slot], np.int32)
    message = f"slot_mapping: expected -1 or a slot below 8, got {slot} for token 2"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.kv_cache_write(key, key, k_cache, v_cache, slots)
    assert not k_cache.any()
    assert not v_cache.any()


def test_write_refuses_a_slot_for_two_tokens_and_writes_nothing():
    key = np.ones((4, 1, 4), np.float32)
    k_cache, v_cache = np.zeros((2, 1, BLOCK_SIZE, 4), F32), np.zeros((2, 1, BLOCK_SIZE, 4), F32)
    message = "kv_cache_write: slot_mapping: expected each slot once, got slot 3 for two tokens"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.kv_cache_write(key, key, k_cache, v_cache, np.array([3, 1, -1, 3], np.int32))
    assert not k_cache.any()
    assert not v_cache.any()
    ops.kv_cache_write(key, key, k_cache, v_cache, np.array([3, -1, -1, 1], np.int32))
    assert k_cache.sum() == 8


@pytest.mark.cuda
def test_a_gpu_skips_slots_and_blocks_out_of_range(rng):
    """The host does not see them: no address may come of a wrong one."""
    before = caches(rng, (3, 2, BLOCK_SIZE, 8), F32)
    k_cache, v_cache = (ek.from_numpy(c, "cuda") for c in before)
    key, value = caches(rng, (5, 2, 8), F32)
    slots = np.array([12, 5, -2, 2**31 - 1, -(2**31)], np.int32)
    ops.kv_cache_write(on(key, "cuda"), on(value, "cuda"), k_cache, v_cache, on(slots, "cuda"))
    pairs = np.array([[0, 3], [-1, 2], [2**62, 2], [0, -(2**63)]])
    ops.kv_cache_copy_blocks(k_cache, v_cache, on(pairs, "cuda"))

    expected = reference.kv_cache_write(
        key, value, *before, np.where(slots == 5, 5, -1).astype(np.int32)
    )
    np.testing.assert_array_equal(bits(k_cache), bits(expected[0]))
    np.testing.assert_array_equal(bits(v_cache), bits(expected[1]))


@pytest.mark.parametrize("dtype", [F32, BF16, np.dtype(np.int8), np.dtype(np.uint8)], ids=str)
@pytest.mark.parametrize("index_type", INDEX_TYPES)
@pytest.mark.parametrize("pairs", [[], [[1, 4]], [[1, 4], [1, 0], [3, 6]]])
def test_copy_blocks_copies_whole_blocks(device, rng, dtype, index_type, pairs):
    before = [c.astype(dtype) for c in caches(rng, (7, 2, BLOCK_SIZE, 5), F32)]
    k_cache, v_cache = (ek.from_numpy(c, device) for c in before)
    mapping = np.array(pairs, index_type).reshape(-1, 2)

    ops.kv_cache_copy_blocks(k_cache, v_cache, on(mapping, device))

    for cache, expected in zip((k_cache, v_cache), before, strict=True):
        expected[mapping[:, 1]] = expected[mapping[:, 0]]
        np.testing.assert_array_equal(bits(cache), bits(expected))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 1], [0, 3]], "expected blocks from 0 to 2, got 3 in pair 1"),
        ([[-1, 1]], "expected blocks from 0 to 2, got -1 in pair 0"),
        ([[0, 2], [1, 2]], "expected each block written once, got block 2 written twice"),
        ([[0, 1], [1, 2]], "expected no block both read and written, got block 1"),
        ([[1, 1]], "expected no block both read and written, got block 1"),
    ],
)
def test_copy_blocks_refuses_what_depends_on_the_order(pairs, message):
    k_cache, v_cache = np.ones((3, 1, BLOCK_SIZE, 2), F32), np.ones((3, 1, BLOCK_SIZE, 2), F32)
    with pytest.raises(ek.ArgumentError, match=f"block_mapping: {message}"):
        ops.kv_cache_copy_blocks(k_cache, v_cache, np.array(pairs, np.int64))


def test_caches_may_not_share_memory():
    cache, key = np.ones((3, 1, BLOCK_SIZE, 2), F32), np.ones((1, 1, 2), F32)
    with pytest.raises(ek.ArgumentError, match="v_cache: expected memory apart from k_cache"):
        ops.kv_cache_write(key, key, cache, cache, np.zeros(1, np.int32))
    with pytest.raises(ek.ArgumentError, match="v_cache: expected memory apart from k_cache"):
        ops.kv_cache_copy_blocks(cache, cache, np.zeros((1, 2), np.int32))
    with pytest.raises(ek.ArgumentError, match="k_cache: expected memory apart from key"):
        ops.kv_cache_write(cache[0, :, :1], key, cache, cache.copy(), np.zeros(1, np.int32))
