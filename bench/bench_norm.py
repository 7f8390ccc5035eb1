"""RMSNorm and LayerNorm beside torch's.

python bench/bench_norm.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

# hidden_size of ERNIE-4.5-0.3B, 21B-A3B and 300B-A47B; one decode step and one prefill each.
CASES = [(t, h) for h in (1024, 2560, 8192) for t in (1, 512)]
# Patches of the vision tower, rows of the resampler.
LAYER_CASES = [(1024, 1280), (256, 5120)]


def peers_of(op: str, x: np.ndarray, device: str) -> dict[str, Callable[[], object]]:
    if not has_torch():
        return {}
    import torch

    tx, shape = torch_tensor(x, device), x.shape[1:]
    ones = torch.ones(shape, dtype=torch.bfloat16, device=device)
    if op == "rms_norm":
        return {"torch": lambda: torch.nn.functional.rms_norm(tx, shape, ones, 1e-5)}
    return {"torch": lambda: torch.nn.functional.layer_norm(tx, shape, ones, ones, 1e-6)}


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    named = [("rms_norm", *case) for case in CASES] + [
        ("layer_norm", *case) for case in LAYER_CASES
    ]
    for name, num_tokens, hidden_size in named:
        yield norm_case(rng, device, name, num_tokens, hidden_size)


def norm_case(rng, device: str, name: str, num_tokens: int, hidden_size: int) -> Case:
    x = rng.standard_normal((num_tokens, hidden_size)).astype(ml_dtypes.bfloat16)
    ones = ek.from_numpy(np.ones(hidden_size, ml_dtypes.bfloat16), device)
    factors = (ones,) if name == "rms_norm" else (ones, ones)
    op, ours, out = getattr(ops, name), ek.from_numpy(x, device), ek.from_numpy(x, device)
    return Case(
        name,
        f"num_tokens={num_tokens} hidden_size={hidden_size} bfloat16",
        lambda: op(ours, *factors, out=out),
        peers_of(name, x, device),
        nbytes=2 * x.nbytes + len(factors) * x.nbytes // num_tokens,
    )


if __name__ == "__main__":
    main(cases, __doc__)
