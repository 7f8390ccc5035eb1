"""The SwiGLU gate beside torch's silu and product.

python bench/bench_activation.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

# intermediate_size of ERNIE-4.5-0.3B and of the dense layers of 21B-A3B.
CASES = [(t, i) for i in (3072, 12288) for t in (1, 512)]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for num_tokens, width in CASES:
        x = rng.standard_normal((num_tokens, 2 * width)).astype(ml_dtypes.bfloat16)
        ours_x, out = ek.from_numpy(x, device), ek.empty((num_tokens, width), "bfloat16", device)
        peers = {}
        if has_torch():
            import torch

            gate, up = torch_tensor(x, device).chunk(2, dim=1)
            peers["torch"] = lambda gate=gate, up=up: torch.nn.functional.silu(gate) * up
        yield Case(
            "silu_and_mul",
            f"num_tokens={num_tokens} intermediate_size={width} bfloat16",
            lambda x=ours_x, out=out: ops.silu_and_mul(x, out=out),
            peers,
            nbytes=x.nbytes + x.nbytes // 2,
        )


if __name__ == "__main__":
    main(cases, __doc__)
