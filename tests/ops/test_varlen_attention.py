"""varlen_attention; test_attention.py has the arithmetic that it shares with the paged cache."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops

import reference
from reference import BF16, F32, SegmentBatch, on, poisoned

MIXED = [5, 0, 1, 64, 65, 0, 33, 130, 2, 0]  # an empty one first to last, between and beside


def batch_of(rng, lengths=MIXED, *, heads=(4, 2), head_dim=16, dtype=F32) -> SegmentBatch:
    return SegmentBatch(
        rng, lengths, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, dtype=dtype
    )


def run(batch: SegmentBatch, device: str = "cpu", **options):
    return ops.varlen_attention(**batch.arguments(device) | options)


def check(rng, lengths, device, *, scale=None, **shape):
    batch = batch_of(rng, lengths, **shape)
    out = poisoned(batch.query.shape, batch.query.dtype, device)
    assert run(batch, device, scale=scale, out=out) is out
    scale = scale or batch.query.shape[2] ** -0.5
    expected, magnitude = batch.expected(scale=scale, device=device)
    reference.check(out, expected, magnitude=magnitude, terms=batch.max_seqlen)


def same_bits(got, expected) -> None:
    got, expected = (np.ascontiguousarray(x).view(np.uint8) for x in (got, expected))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_segments(device, rng, dtype, head_dim):
    check(rng, MIXED, device, dtype=dtype, head_dim=head_dim)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("head_dim", [2, 6, 8, 18, 20, 72, 78, 82, 130, 256])
def test_any_even_head_dim(device, rng, dtype, head_dim):
    check(rng, [0, 20, 3], device, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 2), (16, 16), (7, 1)])
def test_any_group(device, rng, heads):
    check(rng, [21, 70, 1], device, heads=heads, dtype=BF16)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_segments_of_several_splits(device, rng, dtype):
    check(rng, [30, 1100, 512], device, heads=(1, 1), head_dim=8, dtype=dtype)


@pytest.mark.parametrize("scale", [40.0, -0.3])
def test_any_scale(device, rng, scale):
    check(rng, [60, 5], device, scale=scale, dtype=BF16)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_agrees_with_the_paged_cache_to_the_bit(device, rng, dtype):
    """Shorter than a split; longer ones are cut by the cache's plan on CUDA."""
    lengths, block = [70, 300, 9], 16
    batch = batch_of(rng, lengths, head_dim=40, dtype=dtype)
    blocks_of = [-(-n // block) for n in lengths]
    table = np.full((len(lengths), max(blocks_of)), -1, np.int32)
    caches = [np.zeros((sum(blocks_of), 2, block, 40), dtype) for _ in "kv"]
    first = 0
    for s, count in enumerate(blocks_of):
        table[s, :count] = np.arange(first, first + count)
        segment = slice(*batch.cu_seqlens[s : s + 2])
        for cache, rows in zip(caches, (batch.key[segment], batch.value[segment]), strict=True):
            padded = np.zeros((count * block, 2, 40), dtype)
            padded[: lengths[s]] = rows
            cache[first : first + count] = padded.reshape(count, block, 2, 40).swapaxes(1, 2)
        first += count
    paged = ops.attention(
        on(batch.query.copy(), device), *(on(cache, device) for cache in caches),
        cu_seqlens_q=on(batch.cu_seqlens, device),
        seq_lens=on(np.array(lengths, np.int32), device), block_table=on(table, device),
        max_seqlen_q=300, max_seq_len=300, causal=False,
    )  # fmt: skip
    same_bits(run(batch, device).numpy(), paged.numpy())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_reaches_another_segment(device, rng, dtype, part, value):
    batch = batch_of(rng, [3, 64, 7, 66], dtype=dtype)
    good = run(batch, device).numpy()
    rows = {"query": batch.query, "key": batch.key, "value": batch.value}[part]
    assert np.shares_memory(rows, batch.buffer)
    rows[3:67] = value
    bad = run(batch, device).numpy()
    same_bits(bad[:3], good[:3])
    same_bits(bad[67:], good[67:])
    assert not np.isfinite(bad[3:67].astype(F32)).any()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_segment_gets_the_same_bits_in_any_batch(device, rng, dtype):
    """Alone or not, on any number of threads, with CUDA's batch-invariant kernels or without."""
    lengths = [40, 700, 20, 5]
    batch = batch_of(rng, lengths, heads=(2, 2), head_dim=8, dtype=dtype)
    whole = run(batch, device).numpy()
    before = ek.num_threads()
    try:
        for threads in (1, 3, 16) if device == "cpu" else ():
            ek.set_num_threads(threads)
            same_bits(run(batch).numpy(), whole)
    finally:
        ek.set_num_threads(before)
    _core.set_batch_invariant(True)
    try:
        same_bits(run(batch, device, max_seqlen=765).numpy(), whole)
    finally:
        _core.set_batch_invariant(False)
    buffer = ek.from_numpy(batch.buffer, device)
    for begin, end in zip(
        batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True
    ):
        alone = ops.varlen_attention(
            buffer[begin:end, :2], buffer[begin:end, 2:4], buffer[begin:end, 4:],
            cu_seqlens=on(np.array([0, end - begin], np.int32), device), max_seqlen=end - begin,
        )  # fmt: skip
        same_bits(alone.numpy(), whole[begin:end])


def test_strides_of_each_tensor(device, rng):
    """Keys and values that lie differently, an output between other columns, unaligned rows."""
    wide_keys, wide_values, wide_out = (np.full((9, 3, w), np.nan, F32) for w in (11, 17, 9))
    query, keys, values = (rng.standard_normal((9, h, 6)).astype(F32) for h in (2, 1, 1))
    wide_keys[:, 1:2, 3:9] = keys
    wide_values[:, 2:3, 1:7] = values
    out = ek.from_numpy(wide_out, device)
    ops.varlen_attention(
        on(query, device), ek.from_numpy(wide_keys, device)[:, 1:2, 3:9],
        ek.from_numpy(wide_values, device)[:, 2:3, 1:7],
        cu_seqlens=on(np.array([0, 9], np.int32), device), max_seqlen=9, out=out[:, 1:, 2:8],
    )  # fmt: skip
    expected, magnitude, _ = reference.attention(query, keys, values, scale=6**-0.5, causal=False)
    got = out.numpy()
    reference.check(got[:, 1:, 2:8], expected, magnitude=magnitude, terms=9)
    got[:, 1:, 2:8] = np.nan
    assert np.isnan(got).all()


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_empty_batch(device, lengths):
    batch = batch_of(np.random.default_rng(0), lengths)
    assert run(batch, device).shape == (0, 4, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens": [0, 4]}, "cu_seqlens: expected num_tokens=5 at the end, got 4"),
        ({"cu_seqlens": [0]}, "cu_seqlens: expected num_tokens=5 at the end, got 0$"),
        ({"cu_seqlens": []}, "cu_seqlens: expected 1 value or more, got none"),
        ({"cu_seqlens": [1, 5]}, "cu_seqlens: expected 0 at the start, got 1"),
        ({"cu_seqlens": [0, 4, 2, 5]}, "cu_seqlens: expected non-decreasing values, got -2"),
        ({"cu_seqlens": [0, 2**31 - 1, 5]}, "cu_seqlens: expected at most max_seqlen=5 rows"),
        ({"max_seqlen": 4}, "cu_seqlens: expected at most max_seqlen=4 rows, got 5"),
        ({"max_seqlen": 6}, "max_seqlen: expected 0 to num_tokens=5, got 6"),
        ({"max_seqlen": -1}, "max_seqlen: expected 0 to num_tokens=5, got -1"),
    ],
)
def test_wrong_metadata_is_named(rng, changes, message):
    if "cu_seqlens" in changes:
        changes = changes | {"cu_seqlens": np.array(changes["cu_seqlens"], np.int32)}
    with pytest.raises(ek.ArgumentError, match=f"varlen_attention: {message}"):
        run(batch_of(rng, [5]), **changes)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "cu_seqlens", [[0, 2**31 - 1, 10], [7, -(2**31), 5], [0, 7, 2**31 - 1], [9, 2, -1]]
)
def test_a_gpu_takes_no_address_from_wrong_metadata(rng, dtype, cu_seqlens):
    """The host does not see it: rows may be wrong, and nothing else."""
    batch = batch_of(rng, [5, 5], dtype=dtype)
    batch.cu_seqlens = np.array(cu_seqlens, np.int32)
    assert run(batch, "cuda").numpy().shape == batch.query.shape


@pytest.mark.cuda
def test_a_gpu_refuses_rows_that_no_segment_can_have(rng):
    message = (
        "max_seqlen: expected the rows of num_segments=1 sequences to reach num_tokens=5, got 4"
    )
    with pytest.raises(ek.ArgumentError, match=message):
        run(batch_of(rng, [5]), "cuda", max_seqlen=4)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 7, 0], "cu_seqlens: expected at most max_seqlen=0 rows, got 7 for sequence 0"),
        ([3], "cu_seqlens: expected 0 at the start, got 3"),
        ([0, -1], "cu_seqlens: expected non-decreasing values, got -1"),
    ],
)
@pytest.mark.parametrize("heads", [(4, 2), (0, 2)])
def test_lengths_are_checked_where_there_is_nothing_to_compute(rng, cu_seqlens, heads, message):
    batch = batch_of(rng, [], heads=heads)
    batch.cu_seqlens = np.array(cu_seqlens, np.int32)
    with pytest.raises(ek.ArgumentError, match=f"^varlen_attention: {message}"):
        run(batch)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        ("query", lambda x: x[0], "query: expected 3 dimensions"),
        ("query", lambda x: x[:, :3].copy(), "key: expected num_kv_heads that divides num_heads=3"),
        ("query", lambda x: x.astype(np.float16), "query: expected float32 or bfloat16"),
        ("query", lambda x: x[:, :, :15].copy(), "query: expected an even head_dim"),
        ("key", lambda x: x[1:], "key: expected shape .num_tokens=5"),
        ("key", lambda x: x.astype(BF16), "key: expected float32, got bfloat16"),
        ("value", lambda x: x[:, :1], "value: expected shape .num_tokens=5, num_kv_heads=2"),
        ("cu_seqlens", lambda x: x.astype(np.int64), "cu_seqlens: expected int32"),
        ("out", lambda _: np.zeros((5, 4, 15), F32), "out: expected shape"),
    ],
)
def test_wrong_arguments_are_named(rng, device, argument, change, message):
    batch = batch_of(rng, [5])
    arrays = {"query": batch.query, "key": batch.key, "value": batch.value, "out": None,
              "cu_seqlens": batch.cu_seqlens}  # fmt: skip
    with pytest.raises(ek.ArgumentError, match=f"varlen_attention: {message}"):
        run(batch, device, **{argument: on(change(arrays[argument]), device)})


def test_keys_without_heads_are_refused(rng, device):
    batch = batch_of(rng, [5])
    none = on(batch.key[:, :0].copy(), device)
    message = "key: expected num_kv_heads that divides num_heads=4, got 0"
    with pytest.raises(ek.ArgumentError, match=f"varlen_attention: {message}"):
        run(batch, device, key=none, value=none)


def test_scale_is_finite(rng, device):
    with pytest.raises(ek.ArgumentError, match="varlen_attention: scale: expected a finite value"):
        run(batch_of(rng, [5]), device, scale=float("nan"))


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_output_over_an_input_is_refused(rng, part):
    batch = batch_of(rng, [5], heads=(2, 2))
    out = {"query": batch.query, "key": batch.key, "value": batch.value}[part]
    arguments = {"query": batch.query, "key": batch.key, "value": batch.value}
    with pytest.raises(ek.ArgumentError, match=f"out: expected memory apart from {part}"):
        ops.varlen_attention(**arguments, cu_seqlens=batch.cu_seqlens, max_seqlen=5, out=out)
