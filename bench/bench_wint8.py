"""int8 linear layers beside torch's and ggml's: few tokens (weights from memory) and many.

python bench/bench_wint8.py [--threads 2] [--json results.jsonl]

ggml (Q8_0) is timed where llama-cpp-python is installed, see bench_gemm.py. It and torch's
``_int_mm`` round the activations to int8 too and are peers of ``int8_activations``; torch's
``_weight_int8pack_mm`` is one of the weight-only op, on a GPU torch's linear with the bfloat16 weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from ggml_peer import Q8_0, ggml_linear, has_ggml
from harness import Case, copies_beyond_cache, has_torch, main, rotated, torch_tensor

# out_features, in_features of ERNIE-4.5-0.3B: q/k/v, o, gate/up, down, head.
LAYERS = [(2560, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (103424, 1024)]
TOKENS = [1, 4, 32, 512]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for int8_activations in (False, True) if device == "cpu" else (False,):
        for out_features, in_features in LAYERS:
            for num_tokens in TOKENS:
                if out_features > 100_000 and num_tokens > 1:
                    continue
                yield wint8_case(
                    rng, device, int8_activations, num_tokens, out_features, in_features
                )


def wint8_case(rng, device, int8_activations, num_tokens, out_features, in_features) -> Case:
    import ml_dtypes

    values = (rng.standard_normal((out_features, in_features)) * 0.02).astype(np.float32)
    weight, scale = (tensor.numpy() for tensor in ops.wint8_quantize(values))
    x = rng.standard_normal((num_tokens, in_features)).astype(ml_dtypes.bfloat16)
    count = copies_beyond_cache(weight.nbytes) if num_tokens <= 4 else 1
    place = ops.wint8_pack if device == "cpu" else lambda w: ek.from_numpy(w, device)
    ours = rotated([place(weight) for _ in range(count)])
    ours_x, ours_scale = ek.from_numpy(x, device), ek.from_numpy(scale, device)

    def run():
        return ops.wint8_linear(ours_x, ours(), ours_scale, int8_activations=int8_activations)

    peers = {}
    if has_torch():
        import torch

        # In memory of torch's own: _weight_int8pack_mm crashes where it is not aligned.
        theirs = rotated([torch.from_numpy(weight).clone().to(device) for _ in range(count)])
        tx, tscale = torch_tensor(x, device).clone(), torch.from_numpy(scale).to(device)
        if device != "cpu":
            whole = rotated([torch_tensor(values.astype(x.dtype), device) for _ in range(count)])
            peers["bfloat16"] = lambda: torch.nn.functional.linear(tx, whole())
        elif not int8_activations:
            low = tscale.bfloat16()
            peers["int8pack"] = lambda: torch._weight_int8pack_mm(tx, theirs(), low)
        elif num_tokens > 16:
            integers = torch.randint(-127, 128, tuple(tx.shape), dtype=torch.int8)
            peers["_int_mm"] = lambda: torch._int_mm(integers, theirs().T)
    if int8_activations and has_ggml():
        peers["ggml Q8_0"] = ggml_linear(values, x, count, ek.num_threads(), Q8_0)

    def check():
        expected = x.astype(np.float32) @ values.T
        for result in (run().numpy(), *(peers[name]() for name in peers if name != "_int_mm")):
            got = result if isinstance(result, np.ndarray) else result.float().cpu().numpy()
            assert np.abs(got.astype(np.float32) - expected).max() < 0.05 * np.abs(expected).max()

    return Case(
        "w8a8" if int8_activations else "wint8",
        f"num_tokens={num_tokens} {out_features}x{in_features}",
        run,
        peers,
        nbytes=weight.nbytes + scale.nbytes + x.nbytes + 2 * num_tokens * out_features,
        flops=2 * num_tokens * out_features * in_features,
        check=check,
    )


if __name__ == "__main__":
    main(cases, __doc__)
