"""Token embedding beside torch's: plain tables and, on the CPU, packed ones.

python bench/bench_embedding.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

VOCAB_SIZE, HIDDEN_SIZE = 103424, 1024  # ERNIE-4.5-0.3B
TOKENS = [1, 512]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((VOCAB_SIZE, HIDDEN_SIZE), np.float32).astype(ml_dtypes.bfloat16)
    tables = {"plain": ek.from_numpy(table, device)}
    if device == "cpu":
        tables["packed"] = ops.linear_pack(table)
    for num_tokens in TOKENS:
        ids = rng.integers(0, VOCAB_SIZE, num_tokens)
        ours_ids = ek.from_numpy(ids, device)
        out = ek.empty((num_tokens, HIDDEN_SIZE), "bfloat16", device)
        peers = {}
        if has_torch():
            import torch

            theirs, their_ids = torch_tensor(table, device), torch.from_numpy(ids).to(device)
            peers["torch"] = lambda w=theirs, i=their_ids: torch.nn.functional.embedding(i, w)
        for name, weight in tables.items():
            yield Case(
                "embedding",
                f"num_tokens={num_tokens} {VOCAB_SIZE}x{HIDDEN_SIZE} {name}",
                lambda w=weight, i=ours_ids, out=out: ops.embedding(
                    i, w, vocab_size=VOCAB_SIZE, out=out
                ),
                peers,
                nbytes=2 * num_tokens * HIDDEN_SIZE * 2,
            )


if __name__ == "__main__":
    main(cases, __doc__)
