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


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
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
