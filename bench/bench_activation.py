"""The SwiGLU gate beside torch's silu and product, and GELU beside torch's, alone and in linear.

python bench/bench_activation.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

# intermediate_size of ERNIE-4.5-0.3B and of the dense layers of 21B-A3B.
CASES = [(t, i) for i in (3072, 12288) for t in (1, 512)]
# Columns of the vision tower's and the resampler's hidden layers, and what they are made of.
ACTIVATIONS = {"quick_gelu": (5120, 1280), "gelu": (5120, 5120)}
PATCHES = 1024


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    yield from gates(rng, device)
    for name, (size, in_features) in ACTIVATIONS.items():
        yield activation_case(rng, device, name, size)
        yield activated_case(rng, device, name, size, in_features)


def torch_function(name: str) -> Callable[[Any], Any]:
    import torch

    return torch.nn.functional.gelu if name == "gelu" else lambda x: x * torch.sigmoid(1.702 * x)


def activation_case(rng, device: str, name: str, size: int) -> Case:
    x = rng.standard_normal((PATCHES, size)).astype(ml_dtypes.bfloat16)
    ours_x, out = ek.from_numpy(x, device), ek.from_numpy(x, device)
    peers = {}
    if has_torch():
        theirs, function = torch_tensor(x, device), torch_function(name)
        peers["torch"] = lambda: function(theirs)
    return Case(
        name,
        f"num_tokens={PATCHES} size={size} bfloat16",
        lambda: getattr(ops, name)(ours_x, out=out),
        peers,
        nbytes=2 * x.nbytes,
    )


def activated_case(rng, device: str, name: str, out_features: int, in_features: int) -> Case:
    x = rng.standard_normal((PATCHES, in_features)).astype(ml_dtypes.bfloat16)
    weight = (rng.standard_normal((out_features, in_features)) * 0.02).astype(ml_dtypes.bfloat16)
    bias = np.zeros(out_features, ml_dtypes.bfloat16)
    pack = ops.linear_pack if device == "cpu" else lambda w: ek.from_numpy(w, device)
    ours = ek.from_numpy(x, device), pack(weight), ek.from_numpy(bias, device)
    peers = {}
    if has_torch():
        import torch

        theirs = [torch_tensor(array, device) for array in (x, weight, bias)]
        function = torch_function(name)
        peers["torch"] = lambda: function(torch.nn.functional.linear(*theirs))
    return Case(
        f"linear {name}",
        f"num_tokens={PATCHES} {out_features}x{in_features} bfloat16",
        lambda: ops.linear(*ours, activation=name),
        peers,
        nbytes=weight.nbytes + x.nbytes + PATCHES * out_features * 2,
        flops=2 * PATCHES * out_features * in_features,
    )


def gates(rng, device: str) -> Iterator[Case]:
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
