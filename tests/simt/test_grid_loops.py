"""Kernels that walk rows and columns in steps of the grid do so: with the grids that they ask for,
each block has one step to take, as the hardware's limits are far beyond any test. Cut to a few
blocks, the same kernels give the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from simt import control

import reference
from reference import BF16, F32

pytestmark = [pytest.mark.simt]


def tensor(array: np.ndarray) -> ek.Tensor:
    return ek.from_numpy(array, "cuda")


def norms(rng, dtype):
    """Rows of a warp each, and of a block each, which shares its partial sums from row to row."""
    results = []
    for hidden_size in (40, 1100, 4200):
        x = reference.random(rng, (11, hidden_size), dtype)
        weight = tensor(reference.random(rng, (hidden_size,), dtype))
        results.append(ops.rms_norm(tensor(x), weight))
        results += ops.add_rms_norm(tensor(x), tensor(x[::-1].copy()), weight)
        results.append(ops.layer_norm(tensor(x), weight, weight))
        results += ops.add_layer_norm(tensor(x), tensor(x[::-1].copy()), weight, weight)
    return results


def activations(rng, dtype):
    x = tensor(reference.random(rng, (7, 2 * 5000), dtype))
    return [ops.silu_and_mul(x), ops.gelu(x), ops.quick_gelu(x)]


def embedding(rng, dtype):
    weight = tensor(reference.random(rng, (5, 5000), dtype))
    return [ops.embedding(tensor(rng.integers(0, 5, 9)), weight, dtype="float32")]


def rope(rng, dtype):
    query, key = (tensor(reference.random(rng, (7, n, 128), dtype)) for n in (40, 4))
    positions = tensor(np.arange(7) * 11)
    ops.rope(query, key, positions, theta=10000.0)
    tables = [
        ops.rope_table(positions, 1200, theta=10000.0),
        ops.mrope_table(tensor(np.arange(21).reshape(3, 7)), 1200, theta=10000.0),
        ops.rope_2d_table(tensor(np.arange(14).reshape(2, 7)), 1200),
    ]
    ops.rope_2d(query, key, ops.rope_2d_table(tensor(np.arange(14).reshape(2, 7)), 128))
    return [query, key, *tables]


def kv_cache(rng, dtype):
    key, value = (tensor(reference.random(rng, (13, 8, 128), dtype)) for _ in range(2))
    caches = [tensor(reference.random(rng, (8, 8, 4, 128), dtype)) for _ in range(2)]
    slots = np.array([0, 1, 2, -1, 4, 5, 6, 7, 8, 9, 10, 11, 15], np.int32)
    ops.kv_cache_write(key, value, *caches, tensor(slots))
    pairs = np.array([[0, 4], [1, 5], [2, 6], [3, 7]], np.int32)
    ops.kv_cache_copy_blocks(*caches, tensor(pairs))
    return caches


def apply_penalties(rng, dtype):
    rows, vocab_size = 3, 20000  # three tiles
    logits = tensor(reference.random(rng, (rows, vocab_size), dtype))
    token_ids = rng.integers(0, vocab_size, 300)
    ops.apply_penalties(
        logits,
        tensor(token_ids),
        tensor(np.array([0, 100, 100, 300], np.int32)),
        tensor(np.array([50, 0, 10], np.int32)),
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=0.125,
    )
    return [logits]


def sample(rng, dtype):
    logits = tensor(reference.random(rng, (9, 700), dtype, scale=2.5))
    parameters = {
        "temperature": tensor(np.array([1, 1, 0, 1, 1, 0.5, 1, 1, 1], np.float32)),
        "top_k": tensor(np.array([0, 5, 0, 0, 0, 0, 7, 1, 0], np.int32)),
        "top_p": tensor(np.array([1, 1, 1, 0.9, 1, 0.5, 0.5, 1, 1], np.float32)),
        "min_p": 0.01,
        "seed": tensor(np.arange(9)),
        "position": 3,
    }
    return [ops.sample(logits, **parameters)]


def moe(rng, dtype):
    """Routing by warps and by blocks; entries in one block and in tiles; rows and columns."""
    results = []
    for num_experts in (64, 300):
        logits = tensor(reference.random(rng, (11, num_experts), F32))
        results += ops.moe_route(logits, tensor(np.zeros(num_experts, np.float32)), 5)
        banks = tensor(rng.integers(0, 2, 11).astype(np.uint8))
        both = tensor(reference.random(rng, (11, 2 * num_experts), F32))
        bias = tensor(np.zeros((2, num_experts), np.float32))
        results += ops.moe_route(both, bias, 5, banks=banks, num_banks=2)
    ids = tensor(rng.integers(0, 40, (600, 5)).astype(np.int32))  # three tiles
    results += ops.moe_sort(ids, 40)
    x = tensor(reference.random(rng, (7, 2500), dtype))
    permuted, _, inverse = ops.moe_dispatch(x, ids[:7], 40)
    weights = tensor(rng.random((7, 5)).astype(np.float32))
    return [*results, permuted, ops.moe_combine(permuted, inverse, weights, shared=x)]


def vision(rng, dtype):
    """Patches in steps of eight, whose places the threads share; copies of rows and columns."""
    grid = np.array([[1, 6, 10], [2, 2, 2]])
    pixels = tensor(rng.integers(0, 256, 68 * 27).astype(np.uint8))
    levels = tensor(reference.random(rng, (3, 256), F32))
    patches = ops.image_patches(pixels, grid, levels, patch_size=3, dtype=str(dtype))
    x = tensor(reference.random(rng, (17, 5000), dtype))
    merged = ops.temporal_merge(x, grid)
    rows = tensor(rng.permutation(19)[:17].astype(np.int32))
    out = tensor(reference.random(rng, (19, 5000), dtype))
    return [patches, merged, ops.scatter_rows(x, rows, out)]


BOTH = [norms, activations, embedding, rope, kv_cache, moe, vision]
CASES = [(walk, dtype) for walk in BOTH for dtype in (F32, BF16)]
CASES += [(apply_penalties, F32), (sample, F32)]


@pytest.mark.parametrize(("walk", "dtype"), CASES, ids=lambda case: getattr(case, "__name__", None))
def test_few_blocks_give_the_same(walk, dtype):
    full = [t.numpy() for t in walk(np.random.default_rng(1), dtype)]
    for x, y in ((1, 1), (2, 1), (3, 2)):
        with control.grids_of_at_most(x, y):
            few = [t.numpy() for t in walk(np.random.default_rng(1), dtype)]
        for a, b in zip(full, few, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
