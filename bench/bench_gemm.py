"""Linear layers beside torch's and, where llama-cpp-python is installed, ggml's: few tokens (weights from memory) and many.

python bench/bench_gemm.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from ggml_peer import ggml_linear, has_ggml
from harness import Case, copies_beyond_cache, has_torch, main, rotated, torch_tensor

# out_features, in_features of ERNIE-4.5-0.3B: q/k/v, o, gate/up, down, head.
LAYERS = [(2560, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (103424, 1024)]
TOKENS = [1, 8, 32, 512]


def cases(device: str) -> Iterator[Case]:
    import ml_dtypes

    rng = np.random.default_rng(0)
    for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)):
        for out_features, in_features in LAYERS:
            for num_tokens in TOKENS:
                if out_features > 100_000 and num_tokens > 1:
                    continue
                yield linear_case(rng, device, dtype, num_tokens, out_features, in_features)


def linear_case(rng, device, dtype, num_tokens, out_features, in_features) -> Case:
    weight = (rng.standard_normal((out_features, in_features)) * 0.02).astype(dtype)
    x = rng.standard_normal((num_tokens, in_features)).astype(dtype)
    count = copies_beyond_cache(weight.nbytes) if num_tokens == 1 else 1
    pack = ops.linear_pack if device == "cpu" else lambda w: ek.from_numpy(w, device)
    ours = rotated([pack(weight) for _ in range(count)])
    ours_x = ek.from_numpy(x, device)
    peers, check = {}, None
    if has_torch():
        import torch

        theirs = rotated([torch_tensor(weight, device) for _ in range(count)])
        tx = torch_tensor(x, device)
        peers["torch"] = lambda: torch.nn.functional.linear(tx, theirs())

        def check():
            expected = peers["torch"]().float().cpu().numpy()
            got = ops.linear(ours_x, ours()).numpy().astype(np.float32)
            assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()

    if device == "cpu" and dtype.name == "bfloat16" and has_ggml():
        peers["ggml"] = ggml_linear(weight, x, count, ek.num_threads())
        got = ops.linear(ours_x, ours()).numpy().astype(np.float32)
        assert np.abs(got - peers["ggml"]()).max() < 0.05 * np.abs(got).max()

    return Case(
        "linear",
        f"num_tokens={num_tokens} {out_features}x{in_features} {dtype}",
        lambda: ops.linear(ours_x, ours()),
        peers,
        nbytes=weight.nbytes + x.nbytes + num_tokens * out_features * dtype.itemsize,
        flops=2 * num_tokens * out_features * in_features,
        check=check,
    )


if __name__ == "__main__":
    main(cases, __doc__)
