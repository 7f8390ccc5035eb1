"""What the CUDA attention does is decided on the host: plans and indices, without a GPU."""

from __future__ import annotations

import itertools

import pytest

import ernie_kernels as ek
from ernie_kernels import _core

INT64_MAX = 2**63 - 1
SHAPE = {
    "bfloat16": True,
    "num_tokens": 8,
    "num_heads": 16,
    "num_kv_heads": 2,
    "head_dim": 128,
    "num_seqs": 8,
    "max_seqlen_q": 1,
    "max_seq_len": 4096,
    "batch_invariant": False,
}


def plan(**changes) -> dict:
    return _core.cuda_attention_plan(**(SHAPE | changes))


def partial_bytes(num_splits: int, **changes) -> int:
    shape = SHAPE | changes
    return num_splits * shape["num_tokens"] * shape["num_heads"] * (shape["head_dim"] + 2) * 4 + 16


def test_decode_splits_until_the_machine_is_full():
    for n in (1, 2, 3, 8, 20, 32, 66, 132):
        columns, kv_heads = plan(num_tokens=n, num_seqs=n, max_seq_len=32768)["grid"]
        assert 176 <= columns * kv_heads <= 264  # two blocks on each of 132 multiprocessors
    assert plan(num_tokens=200, num_seqs=200)["num_splits"] == 1
    assert plan(num_tokens=1, num_seqs=1, max_seq_len=1024)["num_splits"] == 4
    assert plan(num_tokens=1, num_seqs=1, max_seq_len=200)["num_splits"] == 1


def test_kernel_follows_the_rows_per_kv_head():
    assert plan()["kernel"] == "decode"
    assert plan(max_seqlen_q=4, num_tokens=32)["kernel"] == "decode"
    assert plan(max_seqlen_q=5, num_tokens=40)["kernel"] == "prefill"
    assert plan(batch_invariant=True)["kernel"] == "prefill"
    assert plan(bfloat16=False)["kernel"] == "float32"


@pytest.mark.parametrize(
    ("head_dim", "padded", "padded_float32"),
    [(2, 64, 64), (64, 64, 64), (66, 80, 128), (80, 80, 128), (82, 128, 128), (130, 256, 256)],
)
def test_head_dim_is_padded(head_dim, padded, padded_float32):
    assert plan(head_dim=head_dim)["padded_head_dim"] == padded
    assert plan(head_dim=head_dim, bfloat16=False)["padded_head_dim"] == padded_float32


def test_long_prefill_gets_wide_tiles():
    shape = {"num_seqs": 1, "num_tokens": 4096, "max_seqlen_q": 4096}
    assert plan(**shape)["tile_m"] == 128
    assert plan(**shape, head_dim=256)["tile_m"] == 64
    assert plan(**shape, batch_invariant=True)["tile_m"] == 64
    assert plan(num_seqs=1, num_tokens=64, max_seqlen_q=64)["tile_m"] == 64
    # Many short sequences do not fill wide tiles.
    assert plan(num_seqs=512, num_tokens=4096, max_seqlen_q=8)["tile_m"] == 64


def test_one_long_sequence_among_many_does_not_make_all_of_them_long():
    p = plan(num_seqs=100, num_tokens=2048 + 99, max_seqlen_q=2048)
    assert p["ragged"]
    assert p["tile_slots"] == (2048 + 99) * 8 // p["tile_m"] + 100
    assert not plan()["ragged"]


@pytest.mark.parametrize("max_seqlen_q", [1, 7, 300])
@pytest.mark.parametrize("num_seqs", [1, 3, 40])
@pytest.mark.parametrize("max_seq_len", [1, 511, 512, 513, 100_000])
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_tile_has_a_block(max_seqlen_q, num_seqs, max_seq_len, batch_invariant, bfloat16):
    lengths = [max_seqlen_q] + [1 + i % max_seqlen_q for i in range(num_seqs - 1)]
    shape = {
        "num_seqs": num_seqs,
        "num_tokens": sum(lengths),
        "max_seqlen_q": max_seqlen_q,
        "max_seq_len": max_seq_len,
        "batch_invariant": batch_invariant,
        "bfloat16": bfloat16,
    }
    p = plan(**shape)
    tiles = [-(-n * 8 // p["tile_m"]) for n in lengths]
    assert p["tiles_per_seq"] == max(tiles)
    assert p["tile_slots"] >= (sum(tiles) if p["ragged"] else num_seqs * max(tiles))
    assert p["grid"] == (p["tile_slots"] * p["num_splits"], 2)
    splits = p["num_splits"]
    assert p["workspace_bytes"] == (partial_bytes(splits, **shape) if splits > 1 else 0)
    assert p["workspace_bytes"] <= 64 << 20
    if batch_invariant:
        assert p["split_size"] == 512
        assert p["merge_in_block"] == (splits == 1 and p["merge_in_block"])
        assert p["merge_in_block"] or splits * 512 >= max_seq_len
    else:
        assert p["split_size"] == 0
        assert not p["merge_in_block"]


def test_huge_shapes_saturate():
    for size, batch_invariant in itertools.product([2**31, 2**40, 2**62], [False, True]):
        p = plan(
            num_tokens=size, num_seqs=size, max_seqlen_q=size, max_seq_len=size,
            batch_invariant=batch_invariant,
        )  # fmt: skip
        assert 0 < p["grid"][0] <= INT64_MAX
        assert p["workspace_bytes"] == 0
        assert plan(max_seq_len=size, batch_invariant=batch_invariant)["num_splits"] >= 1


def test_empty_shapes_have_no_blocks():
    assert plan(num_tokens=0, num_seqs=0, max_seqlen_q=0, max_seq_len=0)["grid"][0] == 0
    assert plan(num_tokens=0, num_heads=0, max_seqlen_q=0)["grid"][0] == 0


@pytest.mark.parametrize(
    ("argument", "value", "least"),
    [("num_kv_heads", 0, 1)]
    + [(n, -1, int(n == "num_kv_heads")) for n, v in SHAPE.items() if type(v) is int],
)
def test_plan_refuses_what_is_no_shape(argument, value, least):
    message = f"attention: {argument}: expected at least {least}, got {value}"
    with pytest.raises(ek.ArgumentError, match=message):
        plan(**{argument: value})


VISION = {
    "bfloat16": True, "num_tokens": 1024, "num_heads": 16, "num_kv_heads": 16, "head_dim": 80,
    "num_segments": 1, "max_seqlen": 1024,
}  # fmt: skip


@pytest.mark.parametrize("max_seqlen", [0, 1, 5, 64, 70, 1024, 100_000])
@pytest.mark.parametrize("num_segments", [1, 3, 200])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_segments_have_tiles_for_every_row_and_no_splits(
    max_seqlen, num_segments, bfloat16, head_dim
):
    lengths = [max_seqlen] + [i % (max_seqlen + 1) for i in range(num_segments - 1)]
    shape = {
        "num_segments": num_segments, "num_tokens": sum(lengths), "max_seqlen": max_seqlen,
        "bfloat16": bfloat16, "head_dim": head_dim,
    }  # fmt: skip
    p = _core.cuda_varlen_attention_plan(**VISION | shape)
    assert p["kernel"] == ("prefill" if bfloat16 else "float32")
    assert p["padded_head_dim"] == (128 if head_dim == 80 and not bfloat16 else head_dim)
    tiles = [-(-n // p["tile_m"]) for n in lengths]
    assert p["tiles_per_seq"] == max(tiles)
    assert p["tile_slots"] >= (sum(tiles) if p["ragged"] else num_segments * max(tiles))
    assert p["grid"] == (p["tile_slots"], 16)
    assert (p["num_splits"], p["merge_in_block"], p["workspace_bytes"]) == (1, False, 0)


def test_an_image_fills_the_machine():
    assert _core.cuda_varlen_attention_plan(**VISION)["grid"] == (16, 16)
    large = VISION | {"num_tokens": 5476, "max_seqlen": 5476}
    assert _core.cuda_varlen_attention_plan(**large)["tile_m"] == 128
    assert _core.cuda_varlen_attention_plan(**large | {"head_dim": 82})["tile_m"] == 64


def test_huge_segments_saturate():
    for size in (2**31, 2**40, 2**62):
        shape = {"num_tokens": size, "num_segments": size, "max_seqlen": size}
        assert 0 < _core.cuda_varlen_attention_plan(**VISION | shape)["grid"][0] <= INT64_MAX


@pytest.mark.parametrize("argument", ["num_tokens", "num_kv_heads", "max_seqlen"])
def test_plan_of_segments_refuses_what_is_no_shape(argument):
    with pytest.raises(
        ek.ArgumentError, match=rf"varlen_attention: {argument}\w*: expected .*got -1"
    ):
        _core.cuda_varlen_attention_plan(**VISION | {argument: -1})


@pytest.mark.parametrize("num_splits", [0, -1, 1 << 40])
def test_splits_refuse_a_number_that_no_plan_has(num_splits):
    with pytest.raises(ek.ArgumentError, match="num_splits: expected 1 to 65536"):
        _core.attention_splits(seq_len=900, num_splits=num_splits, fixed=0, minimum=256)


@pytest.mark.parametrize("fixed", [0, 512])
@pytest.mark.parametrize("num_splits", [1, 2, 3, 64])
@pytest.mark.parametrize("seq_len", [0, 1, 63, 64, 65, 512, 513, 4095, 32768, 2**31 - 1, 2**40 + 1])
def test_splits_tile_the_sequence(seq_len, num_splits, fixed):
    if fixed:  # as the plan does
        num_splits = max(1, -(-seq_len // fixed))
        if num_splits > 1000:
            return
    ranges = _core.attention_splits(
        seq_len=seq_len, num_splits=num_splits, fixed=fixed, minimum=256
    )
    assert 1 <= len(ranges) <= num_splits
    assert ranges[0][0] == 0
    assert ranges[-1][1] == seq_len
    for (_, end), (begin, _) in itertools.pairwise(ranges):
        assert end == begin
        assert begin % 64 == 0
    if seq_len > 0:
        assert all(begin < end for begin, end in ranges)


def test_key_limit():
    limits = [_core.attention_key_limit(10, 4, i, True) for i in range(4)]
    assert limits == [7, 8, 9, 10]
    assert _core.attention_key_limit(10, 4, 0, False) == 10
    assert _core.attention_key_limit(2, 4, 0, True) == 0  # more rows than tokens
    assert _core.attention_key_limit(2**40, 2**40, 2**40 - 1, True) == 2**40


def test_cache_offset_is_64_bit_and_clamps_the_block():
    place = {
        "kv_head": 7, "row": 63, "num_blocks": 2**30, "num_kv_heads": 8, "block_size": 64,
        "head_dim": 128,
    }  # fmt: skip
    last = _core.kv_cache_offset(block=2**30 - 1, **place)
    assert last == 2**30 * 8 * 64 * 128 - 128
    assert _core.kv_cache_offset(block=2**31 - 1, **place) == last
    assert _core.kv_cache_offset(block=-1, **place) == (7 * 64 + 63) * 128
