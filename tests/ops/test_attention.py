from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops

import reference
from reference import BF16, F32, PagedBatch, on, poisoned

MIXED = [(1, 1), (5, 5), (1, 64), (17, 40), (1, 65), (0, 9), (33, 33), (1, 200), (64, 128), (3, 63)]
LONG = [(1, 513), (2, 1024), (5, 1030), (1, 1600), (100, 600)]


def run(batch: PagedBatch, device: str = "cpu", **options):
    arguments = batch.arguments(device)
    return ops.attention(
        arguments.pop("query"), arguments.pop("k_cache"), arguments.pop("v_cache"), **arguments,
        **options,
    )  # fmt: skip


def check(rng, lengths, device, *, heads=(4, 2), head_dim=64, block_size=16, dtype=F32,
          causal=True, scale=None):  # fmt: skip
    batch = PagedBatch(
        rng, lengths, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim,
        block_size=block_size, dtype=dtype,
    )  # fmt: skip
    out = poisoned(batch.query.shape, dtype, device)
    assert run(batch, device, causal=causal, scale=scale, out=out) is out
    scale = scale or head_dim**-0.5
    expected, magnitude = batch.expected(scale=scale, causal=causal, device=device)
    reference.check(out, expected, magnitude=magnitude, terms=batch.max_seq_len)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_mixed_batch(device, rng, dtype, block_size, head_dim):
    check(rng, MIXED, device, dtype=dtype, block_size=block_size, head_dim=head_dim)


@pytest.mark.parametrize("head_dim", [2, 6, 8, 16, 18, 34, 96, 130, 256])
def test_any_even_head_dim(device, rng, head_dim):
    check(rng, [(3, 70), (1, 20), (9, 9)], device, head_dim=head_dim, dtype=BF16)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (6, 2), (10, 2), (16, 2), (20, 4), (7, 1)])
def test_any_group(device, rng, heads):
    check(rng, [(3, 70), (1, 20), (21, 21)], device, heads=heads, head_dim=16)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_long_contexts_in_splits(device, rng, dtype):
    check(rng, LONG, device, head_dim=32, dtype=dtype, block_size=64)


def test_more_splits_than_a_warp_has_lanes(device, rng):
    check(rng, [(1, 8460)], device, heads=(2, 1), head_dim=16, dtype=BF16, block_size=64)


def test_not_causal(device, rng):
    check(rng, [*MIXED, (2, 700)], device, causal=False, scale=0.3)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("length", [3, 700])
def test_rows_that_pad_a_step_get_zeros(rng, dtype, invariant, length):
    """On CUDA a sequence of no tokens may have a row; the others get what they get without it."""
    batch = PagedBatch(
        rng, [(1, length), (1, 2)], num_heads=4, num_kv_heads=2, head_dim=32, block_size=16,
        dtype=dtype,
    )  # fmt: skip
    _core.set_batch_invariant(invariant)
    try:
        alone = run(batch, "cuda").numpy()
        batch.query = np.concatenate([batch.query, batch.query])
        batch.cu_seqlens_q = np.arange(5, dtype=np.int32)
        batch.seq_lens = np.concatenate([batch.seq_lens, [0, 0]]).astype(np.int32)
        batch.block_table = np.concatenate([batch.block_table, np.full_like(batch.block_table, -1)])
        padded = run(batch, "cuda", out=poisoned(batch.query.shape, dtype, "cuda")).numpy()
    finally:
        _core.set_batch_invariant(False)
    assert not padded[2:].astype(F32).any()
    np.testing.assert_array_equal(padded[:2].view(np.uint8), alone.view(np.uint8))


def test_a_workspace_of_the_caller(device, rng):
    batch = PagedBatch(
        rng, [(1, 1600)], num_heads=2, num_kv_heads=1, head_dim=16, block_size=16, dtype=F32
    )
    expected = run(batch, device).numpy()
    arguments = batch.arguments(device)
    size = _core.attention_workspace_size(
        arguments["query"], arguments["k_cache"], arguments["seq_lens"], 1, 1600
    )
    assert (size > 0) == (device == "cuda")
    workspace = ek.empty([size], "uint8", device)
    np.testing.assert_array_equal(run(batch, device, workspace=workspace).numpy(), expected)
    if size:
        with pytest.raises(ek.ArgumentError, match=f"workspace: expected {size} bytes, got "):
            run(batch, device, workspace=workspace[: size - 1])


def test_large_scores_do_not_overflow(device, rng):
    check(rng, [(4, 100)], device, scale=40.0)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("head_dim", [8, 40])
@pytest.mark.parametrize("token", [34, 35, 70])  # the second of a pair may be all that is hidden
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_of_later_tokens_do_not_leak(rng, dtype, head_dim, token, value):
    batch = PagedBatch(
        rng, [(70, 80)], num_heads=4, num_kv_heads=2, head_dim=head_dim, block_size=16, dtype=dtype
    )
    finite = run(batch).numpy()
    batch.v_cache[batch.block_table[0, token // 16], :, token % 16, -1] = value
    out = run(batch).numpy()
    row = token - 10  # the first that sees it
    np.testing.assert_array_equal(out[:row].view(np.uint8), finite[:row].view(np.uint8))
    np.testing.assert_array_equal(out[row:, :, :-1], finite[row:, :, :-1])
    np.testing.assert_array_equal(out[row:, :, -1].astype(F32), np.float32(value))


def test_hidden_values_leave_no_sign_of_zero(rng):
    """A probability of zero times a hidden value is a zero of either sign, and a sum may be -0."""
    batch = PagedBatch(
        rng, [(4, 4)], num_heads=1, num_kv_heads=1, head_dim=2, block_size=16, dtype=BF16
    )
    batch.query[:] = 0  # equal probabilities
    values = batch.v_cache[batch.block_table[0, 0], 0]
    values[:4] = np.array([[-2e-38], [1.5e-38], [1.0], [1.0]])  # row 1 underflows to -0
    positive = run(batch).numpy()
    values[2:4] *= -1
    negative = run(batch).numpy()
    np.testing.assert_array_equal(negative[:2].view(np.uint16), positive[:2].view(np.uint16))


@pytest.mark.parametrize("minus_infinity", [64, 640])
def test_keys_of_minus_infinity_count_for_nothing(minus_infinity):
    keys = np.ones((50, 1, 16, 2), np.float32)
    keys.reshape(800, 2)[:minus_infinity] = -np.inf
    values = np.arange(1600, dtype=np.float32).reshape(keys.shape)
    out = ops.attention(
        np.ones((1, 1, 2), np.float32), keys, values,
        cu_seqlens_q=np.array([0, 1], np.int32), seq_lens=np.array([800], np.int32),
        block_table=np.arange(50, dtype=np.int32)[None], max_seqlen_q=1, max_seq_len=800,
    ).numpy()  # fmt: skip
    expected = values.reshape(800, 2)[minus_infinity:].mean(axis=0)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("field", ["cu_seqlens_q", "seq_lens", "block_table"])
def test_output_over_the_metadata_is_refused(rng, field):
    batch = PagedBatch(
        rng, [(5, 20)], num_heads=4, num_kv_heads=2, head_dim=8, block_size=16, dtype=F32
    )
    out = np.zeros(batch.query.shape, F32)
    metadata = getattr(batch, field)
    shared = out.view(np.int32).reshape(-1)[: metadata.size].reshape(metadata.shape)
    shared[:] = metadata
    setattr(batch, field, shared)
    with pytest.raises(ek.ArgumentError, match=f"out: expected memory apart from {field}"):
        run(batch, out=out)


@pytest.fixture
def batch_invariant():
    _core.set_batch_invariant(True)
    yield
    _core.set_batch_invariant(False)


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("dtype", [pytest.param(F32, marks=pytest.mark.one_seed), BF16], ids=str)
def test_row_depends_on_itself_alone(device, rng, dtype):
    """Prefill, in chunks, token by token, in any batch, on any number of threads: the same bits."""
    batch = PagedBatch(
        rng, [(600, 600), (1, 1100), (37, 90)], num_heads=4, num_kv_heads=2, head_dim=40,
        block_size=16, dtype=dtype,
    )  # fmt: skip
    whole = run(batch, device).numpy()
    before = ek.num_threads()
    try:
        for threads in (1, 3, 16) if device == "cpu" else ():
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(run(batch).numpy(), whole)
    finally:
        ek.set_num_threads(before)
    k_cache, v_cache = on(batch.k_cache, device), on(batch.v_cache, device)
    first = 0
    for s, (n, total) in enumerate(batch.lengths):
        history = total - n
        for begin, end in [(0, n), (n // 2, n), (0, 1), (n - 1, n), (n // 3, n // 3 + 50)]:
            end = min(end, n)
            part = ops.attention(
                on(batch.query[first + begin : first + end], device),
                k_cache,
                v_cache,
                cu_seqlens_q=on(np.array([0, end - begin], np.int32), device),
                seq_lens=on(np.array([history + end], np.int32), device),
                block_table=on(batch.block_table[s : s + 1], device),
                max_seqlen_q=end - begin,
                max_seq_len=history + end,
            ).numpy()
            np.testing.assert_array_equal(part, whole[first + begin : first + end])
        first += n


def test_strided_query_and_output(device, rng):
    batch = PagedBatch(
        rng, [(5, 20), (2, 2)], num_heads=2, num_kv_heads=1, head_dim=16, block_size=16, dtype=F32
    )
    fused = np.full((7, 6, 16), np.nan, np.float32)
    fused[:, 2:4] = batch.query
    fused = ek.from_numpy(fused, device)
    wide = ek.from_numpy(np.zeros((7, 4, 16), np.float32), device)
    arguments = batch.arguments(device)
    arguments.pop("query")
    out = wide[:, 1:3]
    ops.attention(
        fused[:, 2:4], arguments.pop("k_cache"), arguments.pop("v_cache"), **arguments, out=out
    )
    expected, magnitude = batch.expected(scale=0.25, causal=True, device=device)
    reference.check(wide.numpy()[:, 1:3], expected, magnitude=magnitude, terms=20)
    assert np.all(wide.numpy()[:, 0] == 0)
    assert np.all(wide.numpy()[:, 3] == 0)


def test_empty_batch(device):
    batch = PagedBatch(
        np.random.default_rng(0), [], num_heads=2, num_kv_heads=1, head_dim=8, block_size=16,
        dtype=F32,
    )  # fmt: skip
    assert run(batch, device).shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_table", [[0, 99]], "block_table: expected ids from 0 to 4, got 99 for sequence 0"),
        ("block_table", [[0, -1]], "block_table: expected ids from 0 to 4, got -1 for sequence 0"),
        ("seq_lens", [3], "seq_lens: expected 5 .its query rows. to max_seq_len=20, got 3"),
        ("seq_lens", [21], "seq_lens: expected 5 .its query rows. to max_seq_len=20, got 21"),
        ("cu_seqlens_q", [0, 4], "cu_seqlens_q: expected num_tokens=5 at the end, got 4"),
        ("cu_seqlens_q", [1, 5], "cu_seqlens_q: expected 0 at the start, got 1"),
        ("max_seqlen_q", 4, "cu_seqlens_q: expected at most max_seqlen_q=4 rows, got 5"),
    ],
)
def test_wrong_metadata_is_named(rng, field, value, message):
    batch = PagedBatch(
        rng, [(5, 20)], num_heads=2, num_kv_heads=1, head_dim=8, block_size=16, dtype=F32
    )
    setattr(batch, field, value if isinstance(value, int) else np.array(value, np.int32))
    with pytest.raises(ek.ArgumentError, match=f"attention: {message}"):
        run(batch)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cu_seqlens_q", [0, -1], "cu_seqlens_q: expected non-decreasing values, got -1"),
        ("seq_lens", [-1], "seq_lens: expected 0 .its query rows. to max_seq_len=20, got -1"),
        ("block_table", [[0, 99]], "block_table: expected ids from 0 to 4, got 99 for sequence 0"),
    ],
)
def test_metadata_is_checked_where_there_is_nothing_to_compute(rng, field, value, message):
    batch = PagedBatch(
        rng, [(0, 20)], num_heads=2, num_kv_heads=1, head_dim=8, block_size=16, dtype=F32
    )
    setattr(batch, field, np.array(value, np.int32))
    with pytest.raises(ek.ArgumentError, match=f"^attention: {message}"):
        run(batch)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_table", [[0, 99], [-5, 2]]),
        ("seq_lens", [2**31 - 1, 20]),
        ("seq_lens", [-(2**31), 3]),
        ("cu_seqlens_q", [0, 2**31 - 1, 10]),
        ("cu_seqlens_q", [7, -(2**31), 5]),
        ("cu_seqlens_q", [0, 7, 2**31 - 1]),
    ],
)
def test_a_gpu_takes_no_address_from_wrong_metadata(rng, dtype, causal, field, value):
    """The host does not see it: rows may be wrong, and nothing else."""
    batch = PagedBatch(
        rng, [(5, 20), (5, 30)], num_heads=2, num_kv_heads=1, head_dim=8, block_size=16, dtype=dtype
    )
    setattr(batch, field, np.array(value, np.int32))
    assert run(batch, "cuda", causal=causal).numpy().shape == batch.query.shape


def test_wrong_arguments_are_named(rng, device):
    batch = PagedBatch(
        rng, [(5, 20)], num_heads=4, num_kv_heads=2, head_dim=8, block_size=16, dtype=F32
    )
    for field, value, message in [
        ("query", batch.query[0], "query: expected 3 dimensions"),
        ("query", batch.query[:, :3].copy(), "k_cache: expected num_kv_heads that divides"),
        ("query", batch.query.astype(np.float16), "query: expected float32 or bfloat16"),
        ("query", batch.query[:, :, :7].copy(), "query: expected an even head_dim"),
        ("k_cache", batch.k_cache[:, :, :8].copy(), "k_cache: expected block_size 16, 32 or 64"),
        ("k_cache", batch.k_cache.astype(BF16), "k_cache: expected float32, got bfloat16"),
        ("v_cache", batch.v_cache[1:], "v_cache: expected shape"),
        ("seq_lens", batch.seq_lens.astype(np.int64), "seq_lens: expected int32"),
        ("block_table", batch.block_table[0], "block_table: expected 2 dimensions"),
        ("max_seq_len", 33, "max_seq_len: expected 0 to max_blocks . block_size=32"),
    ]:
        arguments = batch.arguments(device)
        arguments[field] = value if isinstance(value, int) else on(value, device)
        with pytest.raises(ek.ArgumentError, match=f"attention: {message}"):
            ops.attention(
                arguments.pop("query"), arguments.pop("k_cache"), arguments.pop("v_cache"),
                **arguments,
            )  # fmt: skip
    with pytest.raises(ek.ArgumentError, match="attention: scale: expected a finite value"):
        run(batch, device, scale=float("inf"))
    with pytest.raises(ek.UnsupportedError, match="k_scale"):
        run(batch, device, k_scale=1)
