"""The next token from logits, beside the same filters in torch operations.

python bench/bench_sampling.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main

VOCAB_SIZE = 103424
FILTERS = {
    "greedy": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "no filter": {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "top_k=50": {"temperature": 0.8, "top_k": 50, "top_p": 1.0, "min_p": 0.0},
    "top_p=0.9": {"temperature": 0.8, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
}


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for num_seqs in (1, 32):
        logits = (rng.standard_normal((num_seqs, VOCAB_SIZE)) * 3).astype(np.float32)
        ours = ek.from_numpy(logits, device)
        for name, options in FILTERS.items():
            peers = {}
            if has_torch():
                import torch

                theirs = torch.from_numpy(logits).to(device)
                peers["torch"] = lambda x=theirs, o=options: torch_sample(torch, x, **o)
            yield Case(
                "sample",
                f"num_seqs={num_seqs} vocab_size={VOCAB_SIZE} {name}",
                lambda x=ours, o=options: ops.sample(x, seed=1, position=2, **o),
                peers,
                nbytes=logits.nbytes,
            )


def torch_sample(torch, logits, *, temperature, top_k, top_p, min_p):
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1:
        ordered, ids = logits.sort(descending=True)
        p = ordered.softmax(-1)
        ordered = ordered.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, ids, ordered)
    return logits.softmax(-1).multinomial(1)


if __name__ == "__main__":
    main(cases, __doc__)
