"""Checks of what stands between the products: norms, embedding, positions, cache, attention."""

from __future__ import annotations

import itertools

import numpy as np

from ernie_kernels import ops
from ernie_kernels.doctor.case import EPS, THETA, Case, Pairs, exactly, float64
from ernie_kernels.doctor.linear_checks import wint4_weight
from ernie_kernels.verify import formulas, vision_bounds
from ernie_kernels.verify.bounds import FLOAT32, UNDERFLOW, Expected


def rms_norm(case: Case) -> Pairs:
    x, weight = case.random(5, 37), case.random(37)
    out = case.timed(lambda: ops.rms_norm(case.floats(x), case.floats(weight), eps=EPS))
    yield out, case.bounds.rms_norm(x, weight, EPS)


def add_rms_norm(case: Case) -> Pairs:
    x, residual, weight = case.random(5, 37), case.random(5, 37), case.random(37)
    added = case.floats(residual)
    out, _ = case.timed(
        lambda: ops.add_rms_norm(case.floats(x), added, case.floats(weight), eps=EPS)
    )
    yield added, case.bounds.sum(x, residual)
    yield out, case.bounds.rms_norm(float64(added), weight, EPS)


def layer_norm(case: Case) -> Pairs:
    x, weight, bias = case.random(5, 37), case.random(37), case.random(37)
    given = case.floats(x), case.floats(weight), case.floats(bias)
    expected = vision_bounds.layer_norm(case.bounds, x, weight, bias, EPS)
    yield case.timed(lambda: ops.layer_norm(*given, eps=EPS)), expected


def add_layer_norm(case: Case) -> Pairs:
    x, residual, weight, bias = (case.random(*shape) for shape in ((5, 37), (5, 37), (37,), (37,)))
    added, factors = case.floats(residual), (case.floats(weight), case.floats(bias))
    out, _ = case.timed(lambda: ops.add_layer_norm(case.floats(x), added, *factors, eps=EPS))
    yield added, case.bounds.sum(x, residual)
    yield out, vision_bounds.layer_norm(case.bounds, float64(added), weight, bias, EPS)


def embedding(case: Case) -> Pairs:
    table, ids = case.random(11, 37), np.array([10, 0, 3, 3, 7])
    out = case.timed(lambda: ops.embedding(case.integers(ids, "int64"), case.floats(table)))
    yield out, exactly(table[ids])
    values, pairs, scale = wint4_weight(case, 11)
    scaled = ops.embedding(
        case.integers(ids, "int64"), pairs, scale=case.integers(scale, "float32")
    )  # of 38 columns: none says that the table has one less
    yield scaled, exactly(np.pad(values * scale[:, None], ((0, 0), (0, 1)))[ids])


def silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 26) * 4
    out = case.timed(lambda: ops.silu_and_mul(case.floats(x)))
    gate, up = np.split(x, 2, axis=-1)
    value = formulas.silu(gate) * up
    computed = 16 * FLOAT32 * (1 + np.abs(gate)) + case.bounds.unit
    yield out, Expected(value, computed * np.abs(value) + UNDERFLOW)


def gelu(case: Case) -> Pairs:
    x = case.random(5, 26) * 4
    yield case.timed(lambda: ops.gelu(case.floats(x))), vision_bounds.gelu(case.bounds, x)


def quick_gelu(case: Case) -> Pairs:
    x = case.random(5, 26) * 4
    out = case.timed(lambda: ops.quick_gelu(case.floats(x)))
    yield out, vision_bounds.quick_gelu(case.bounds, x)


def rope_table(case: Case) -> Pairs:
    positions = np.array([0, 1, 31, 4095, 131071])
    out = case.timed(lambda: ops.rope_table(case.integers(positions, "int64"), 14, theta=THETA))
    angles = formulas.rope_angles(positions, 14, THETA)
    value = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(5, 14)
    yield out, Expected(value, FLOAT32 * (1.01 * np.abs(value)) + UNDERFLOW)


def mrope_table(case: Case) -> Pairs:
    positions = np.array([[0, 1, 4095], [0, 31, 131071], [0, 7, 2]])
    given = case.integers(positions, "int64")
    out = case.timed(lambda: ops.mrope_table(given, 14, theta=THETA, freq_allocation=3))
    angles = formulas.rope_angles_3d(positions, 14, THETA, 3)
    value = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(3, 14)
    yield out, Expected(value, FLOAT32 * (1.01 * np.abs(value)) + UNDERFLOW)


def rope_2d_table(case: Case) -> Pairs:
    positions = np.array([[0, 1, 95], [0, 3, 40]])
    out = case.timed(lambda: ops.rope_2d_table(case.integers(positions, "int64"), 12))
    angles = formulas.rope_angles_2d(positions.T, 12, 10000.0)
    value = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    yield out, Expected(value, FLOAT32 * (1.01 * np.abs(value)) + UNDERFLOW)


def rope_2d(case: Case) -> Pairs:
    positions = np.array([[0, 1, 95], [0, 3, 40]])
    query, key = case.random(3, 3, 12), case.random(3, 2, 12)
    turned = case.floats(query), case.floats(key)
    table = ops.rope_2d_table(case.integers(positions, "int64"), 12)
    case.timed(lambda: ops.rope_2d(*turned, table))
    angles = formulas.rope_angles_2d(positions.T, 12, 10000.0)
    for actual, before in zip(turned, (query, key), strict=True):
        yield actual, vision_bounds.rotated_halves(case.bounds, exactly(before), angles)


def rope(case: Case) -> Pairs:
    positions = np.array([0, 1, 31, 4095, 131071])
    query, key = case.random(5, 3, 14), case.random(5, 1, 14)
    turned = case.floats(query), case.floats(key)
    case.timed(lambda: ops.rope(*turned, case.integers(positions, "int64"), theta=THETA))
    angles = formulas.rope_angles(positions, 14, THETA)
    for actual, before in zip(turned, (query, key), strict=True):
        yield actual, case.bounds.rotated(exactly(before), angles)


def kv_cache_write(case: Case) -> Pairs:
    key, value = case.random(4, 2, 6), case.random(4, 2, 6)
    caches = case.random(3, 2, 16, 6), case.random(3, 2, 16, 6)
    slots = np.array([40, -1, 0, 17])
    written = case.floats(caches[0]), case.floats(caches[1])
    slot_mapping = case.integers(slots, "int32")
    case.timed(
        lambda: ops.kv_cache_write(case.floats(key), case.floats(value), *written, slot_mapping)
    )
    for cache, rows in zip(caches, (key, value), strict=True):
        for slot, row in zip(slots, rows, strict=True):
            if slot >= 0:
                cache[slot // 16, :, slot % 16] = row
    for actual, cache in zip(written, caches, strict=True):
        yield actual, exactly(cache)


def kv_cache_copy_blocks(case: Case) -> Pairs:
    caches = case.random(5, 2, 16, 6), case.random(5, 2, 16, 6)
    copied = case.floats(caches[0]), case.floats(caches[1])
    pairs = case.integers([[4, 0], [2, 3]], "int32")
    case.timed(lambda: ops.kv_cache_copy_blocks(*copied, pairs))
    for actual, cache in zip(copied, caches, strict=True):
        cache[[0, 3]] = cache[[4, 2]]
        yield actual, exactly(cache)


def attention(case: Case) -> Pairs:
    """A whole prompt, the end of another, and one token of a third, in blocks out of order."""
    lengths = [(7, 7), (5, 33), (1, 19)]  # queries, tokens in the cache
    heads, kv_heads, head_dim, block = 6, 2, 24, 16
    table = np.full((3, 3), -1, np.int32)
    free = iter(case.rng.permutation(8))
    keys, values = (np.full((8, kv_heads, block, head_dim), 0.0) for _ in range(2))
    queries, sequences = case.random(13, heads, head_dim), []
    for row, (_, length) in enumerate(lengths):
        k, v = case.random(length, kv_heads, head_dim), case.random(length, kv_heads, head_dim)
        sequences.append((k, v))
        for first in range(0, length, block):
            table[row, first // block] = here = int(next(free))
            count = min(block, length - first)
            keys[here, :, :count] = k[first : first + count].swapaxes(0, 1)
            values[here, :, :count] = v[first : first + count].swapaxes(0, 1)
    starts = np.cumsum([0, *(n for n, _ in lengths)])
    out = case.timed(
        lambda: ops.attention(
            case.floats(queries),
            case.floats(keys),
            case.floats(values),
            cu_seqlens_q=case.integers(starts, "int32"),
            seq_lens=case.integers([length for _, length in lengths], "int32"),
            block_table=case.integers(table, "int32"),
            max_seqlen_q=7,
            max_seq_len=33,
        )
    )
    result = float64(out)
    for (k, v), begin, end in zip(sequences, starts[:-1], starts[1:], strict=True):
        yield result[begin:end], case.bounds.attention(queries[begin:end], k, v)


def varlen_attention(case: Case) -> Pairs:
    """Segments, an empty one too, whose queries, keys and values are parts of one buffer."""
    heads, kv_heads, head_dim = 6, 2, 24
    starts = [0, 7, 7, 40]
    buffer = case.random(starts[-1], heads + 2 * kv_heads, head_dim)
    parts = np.split(buffer, [heads, heads + kv_heads], axis=1)
    on_device = case.floats(buffer)
    out = case.timed(
        lambda: ops.varlen_attention(
            on_device[:, :heads],
            on_device[:, heads : heads + kv_heads],
            on_device[:, heads + kv_heads :],
            cu_seqlens=case.integers(starts, "int32"),
            max_seqlen=33,
        )
    )
    result = float64(out)
    for begin, end in itertools.pairwise(starts):
        if end > begin:
            q, k, v = (part[begin:end] for part in parts)
            yield result[begin:end], case.bounds.attention(q, k, v, causal=False)
