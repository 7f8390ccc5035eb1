"""Paged attention, and attention within segments, beside torch's scaled_dot_product_attention on
contiguous keys and values; on each segment in turn where there are several.

python bench/bench_attention.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, copies_beyond_cache, has_torch, main, rotated, torch_tensor

# num_heads, num_kv_heads of ERNIE-4.5-0.3B and 21B-A3B; head_dim 128.
HEADS = [(16, 2), (20, 4)]
HEAD_DIM, BLOCK_SIZE = 128, 64
DECODE = [1024, 4096, 16384]  # tokens in the cache, one query
PREFILL = [512, 2048]  # all tokens are queries
# Heads and head_dim of the vision encoder; patches of each frame: an image of 448 x 448 pixels, one
# of 1036 x 1036, eight frames of 224 x 224.
VISION_HEADS, VISION_HEAD_DIM = 16, 80
FRAMES = [[1024], [5476], [256] * 8]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for heads in HEADS:
        for length in DECODE:
            yield attention_case(rng, device, heads, 1, length)
        for length in PREFILL:
            yield attention_case(rng, device, heads, length, length)
    for dtype in (ml_dtypes.bfloat16, np.float32):
        for lengths in FRAMES:
            yield varlen_case(rng, device, np.dtype(dtype), lengths)


def attention_case(rng, device, heads, num_queries, length) -> Case:
    num_heads, num_kv_heads = heads
    blocks = length // BLOCK_SIZE
    kv_bytes = 2 * length * num_kv_heads * HEAD_DIM * 2
    count = copies_beyond_cache(kv_bytes, 200 << 20) if num_queries == 1 else 1

    def cache():
        shape = (blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

    pairs = [(cache(), cache()) for _ in range(count)]
    query = rng.standard_normal((num_queries, num_heads, HEAD_DIM)).astype(ml_dtypes.bfloat16)
    ours_kv = rotated([(ek.from_numpy(k, device), ek.from_numpy(v, device)) for k, v in pairs])
    ours_query = ek.from_numpy(query, device)
    metadata = {
        "cu_seqlens_q": ek.from_numpy(np.array([0, num_queries], np.int32), device),
        "seq_lens": ek.from_numpy(np.array([length], np.int32), device),
        "block_table": ek.from_numpy(np.arange(blocks, dtype=np.int32)[None], device),
        "max_seqlen_q": num_queries,
        "max_seq_len": length,
    }

    def ours():
        return ops.attention(ours_query, *ours_kv(), **metadata)

    peers, check = {}, None
    if has_torch():
        import torch

        def contiguous(c):
            kv_heads_first = c.transpose(1, 0, 2, 3).reshape(1, num_kv_heads, length, HEAD_DIM)
            return torch_tensor(kv_heads_first, device)

        theirs_kv = rotated([(contiguous(k), contiguous(v)) for k, v in pairs])
        theirs_query = torch_tensor(query.transpose(1, 0, 2)[None].copy(), device)

        def theirs():
            return torch.nn.functional.scaled_dot_product_attention(
                theirs_query, *theirs_kv(), is_causal=num_queries > 1, enable_gqa=True
            )

        peers["torch SDPA"] = theirs

        def check():
            got = ours().numpy().astype(np.float32)
            expected = theirs()[0].transpose(0, 1).float().cpu().numpy()
            assert np.abs(got - expected).max() < 0.05

    pairs_seen = length if num_queries == 1 else length * (length + 1) // 2
    return Case(
        "attention",
        f"{num_heads}/{num_kv_heads} heads, {num_queries} queries, {length} keys",
        ours,
        peers,
        nbytes=kv_bytes + 2 * query.nbytes,
        flops=4 * num_heads * HEAD_DIM * pairs_seen,
        check=check,
    )


def varlen_case(rng, device, dtype, lengths) -> Case:
    shape = (sum(lengths), 3 * VISION_HEADS, VISION_HEAD_DIM)
    fused = rng.standard_normal(shape).astype(dtype)
    parts = slice(VISION_HEADS), slice(VISION_HEADS, 2 * VISION_HEADS), slice(-VISION_HEADS, None)
    on_device = ek.from_numpy(fused, device)
    query, key, value = (on_device[:, part] for part in parts)
    cu_seqlens = ek.from_numpy(np.cumsum([0, *lengths], dtype=np.int32), device)

    def ours():
        return ops.varlen_attention(
            query, key, value, cu_seqlens=cu_seqlens, max_seqlen=max(lengths)
        )

    peers, check = {}, None
    if has_torch():
        import torch

        heads_first = (fused[None, :, part].swapaxes(1, 2).copy() for part in parts)
        whole = (torch_tensor(x, device) for x in heads_first)
        segments = list(zip(*(x.split(lengths, dim=2) for x in whole), strict=True))

        def theirs():
            return [torch.nn.functional.scaled_dot_product_attention(*s) for s in segments]

        peers["torch SDPA"] = theirs

        def check():
            got = ours().numpy().astype(np.float32)
            expected = torch.cat(theirs(), dim=2)[0].transpose(0, 1).float().cpu().numpy()
            assert np.abs(got - expected).max() < 0.05

    return Case(
        "varlen_attention",
        f"{dtype.name}, {VISION_HEADS} heads of {VISION_HEAD_DIM}, "
        f"{len(lengths)} x {lengths[0]} patches",
        ours,
        peers,
        nbytes=fused.nbytes + query.nbytes,
        flops=4 * VISION_HEADS * VISION_HEAD_DIM * sum(n * n for n in lengths),
        check=check,
    )


if __name__ == "__main__":
    main(cases, __doc__)
