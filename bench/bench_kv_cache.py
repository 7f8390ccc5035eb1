"""Writes into the paged cache beside torch's index_copy into a contiguous one.

python bench/bench_kv_cache.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

BLOCK_SIZE, HEAD_DIM, NUM_BLOCKS = 64, 128, 256
CASES = [(t, h) for h in (2, 4, 8) for t in (1, 512)]  # num_tokens, num_kv_heads


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for num_tokens, num_kv_heads in CASES:
        shape = (num_tokens, num_kv_heads, HEAD_DIM)
        key, value = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for _ in "kv")
        slots = rng.permutation(NUM_BLOCKS * BLOCK_SIZE)[:num_tokens].astype(np.int64)
        cache = (NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
        caches = [ek.from_numpy(np.zeros(cache, ml_dtypes.bfloat16), device) for _ in "kv"]
        given = [ek.from_numpy(a, device) for a in (key, value)]
        ours_slots = ek.from_numpy(slots, device)
        peers = {}
        if has_torch():
            import torch

            flat = (NUM_BLOCKS * BLOCK_SIZE, num_kv_heads, HEAD_DIM)
            theirs = [torch.zeros(flat, dtype=torch.bfloat16, device=device) for _ in "kv"]
            sources = [torch_tensor(a, device) for a in (key, value)]
            index = torch.from_numpy(slots).to(device)

            def write(theirs=theirs, sources=sources, index=index):
                for target, source in zip(theirs, sources, strict=True):
                    target.index_copy_(0, index, source)

            peers["torch"] = write
        yield Case(
            "kv_cache_write",
            f"num_tokens={num_tokens} num_kv_heads={num_kv_heads} head_dim={HEAD_DIM}",
            lambda g=given, c=caches, s=ours_slots: ops.kv_cache_write(*g, *c, s),
            peers,
            nbytes=4 * key.nbytes,
        )


if __name__ == "__main__":
    main(cases, __doc__)
