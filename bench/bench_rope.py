"""Rotary embedding of queries and keys beside the same in torch operations.

python bench/bench_rope.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

HEAD_DIM, THETA = 128, 500000.0
CASES = [(t, *h) for h in ((16, 2), (20, 4)) for t in (1, 512)]
PATCHES, PATCH_HEADS, PATCH_HEAD_DIM = 1024, 16, 80  # a 448 x 448 image in the vision tower


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    yield from text_cases(rng, device)
    yield patches_case(rng, device)


def patches_case(rng, device: str) -> Case:
    """Query and key out of the buffer that one projection has made of all three."""
    shape = (PATCHES, 3 * PATCH_HEADS, PATCH_HEAD_DIM)
    fused = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    side = np.arange(32)
    positions = np.stack([np.repeat(side, 32), np.tile(side, 32)])
    table = ops.rope_2d_table(ek.from_numpy(positions, device), PATCH_HEAD_DIM)
    ours = ek.from_numpy(fused, device)
    query, key = ours[:, :PATCH_HEADS], ours[:, PATCH_HEADS : 2 * PATCH_HEADS]
    peers = {}
    if has_torch():
        import torch

        theirs = torch_tensor(fused, device)[:, : 2 * PATCH_HEADS]
        angles = torch.from_numpy(table.numpy().copy()).to(device)[:, None]
        cos, sin = angles.chunk(2, dim=-1)

        def rotate():
            first, second = theirs.float().chunk(2, dim=-1)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
            turned.to(theirs.dtype)

        peers["torch"] = rotate
    return Case(
        "rope_2d",
        f"num_patches={PATCHES} heads={PATCH_HEADS} head_dim={PATCH_HEAD_DIM}",
        lambda: ops.rope_2d(query, key, table),
        peers,
        nbytes=2 * (fused.nbytes * 2 // 3) + table.nbytes,
    )


def text_cases(rng, device: str) -> Iterator[Case]:
    for num_tokens, num_heads, num_kv_heads in CASES:
        query, key = (
            rng.standard_normal((num_tokens, heads, HEAD_DIM)).astype(ml_dtypes.bfloat16)
            for heads in (num_heads, num_kv_heads)
        )
        positions = ek.from_numpy(np.arange(num_tokens), device)
        table = ops.rope_table(positions, HEAD_DIM, theta=THETA)
        ours = [ek.from_numpy(a, device) for a in (query, key)]
        peers = {}
        if has_torch():
            import torch

            pairs = torch.from_numpy(table.numpy().copy()).to(device).view(num_tokens, 1, -1, 2)
            cos, sin = pairs[..., 0], pairs[..., 1]
            theirs = [torch_tensor(a, device) for a in (query, key)]

            def rotate(theirs=theirs, cos=cos, sin=sin):
                for x in theirs:
                    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
                    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
                    turned.flatten(-2).to(x.dtype)

            peers["torch"] = rotate
        yield Case(
            "rope",
            f"num_tokens={num_tokens} heads={num_heads}/{num_kv_heads} head_dim={HEAD_DIM}",
            lambda x=ours, p=positions, t=table: ops.rope(*x, p, theta=THETA, table=t),
            peers,
            nbytes=2 * (query.nbytes + key.nbytes) + table.nbytes,
        )


if __name__ == "__main__":
    main(cases, __doc__)
