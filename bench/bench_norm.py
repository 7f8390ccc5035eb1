"""RMSNorm beside torch's rms_norm.

python bench/bench_norm.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

# hidden_size of ERNIE-4.5-0.3B, 21B-A3B and 300B-A47B; one decode step and one prefill each.
CASES = [(t, h) for h in (1024, 2560, 8192) for t in (1, 512)]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for num_tokens, hidden_size in CASES:
        x = rng.standard_normal((num_tokens, hidden_size)).astype(ml_dtypes.bfloat16)
        weight = np.ones(hidden_size, ml_dtypes.bfloat16)
        ours_x, ours_w = ek.from_numpy(x, device), ek.from_numpy(weight, device)
        out = ek.from_numpy(x, device)
        peers = {}
        if has_torch():
            import torch

            tx = torch_tensor(x, device)
            tw = torch.ones(hidden_size, dtype=torch.bfloat16, device=device)
            peers["torch"] = lambda tx=tx, tw=tw, h=hidden_size: torch.nn.functional.rms_norm(
                tx, (h,), tw, 1e-5
            )
        yield Case(
            "rms_norm",
            f"num_tokens={num_tokens} hidden_size={hidden_size} bfloat16",
            lambda x=ours_x, w=ours_w, out=out: ops.rms_norm(x, w, out=out),
            peers,
            nbytes=2 * x.nbytes + weight.nbytes,
        )


if __name__ == "__main__":
    main(cases, __doc__)
