"""The routed experts of one layer: ours in bfloat16, int8 and 4 bits beside torch's and llama.cpp's.

python bench/bench_fused_moe.py [--threads 2] [--only 21B] [--json results.jsonl]

Peers: ``torch._grouped_mm`` on sorted rows; the experts of transformers' Ernie4_5_Moe, eager and with
``grouped_mm``; kt-kernel's bfloat16 experts where it is installed (kt_peer.py); ggml's ``mul_mat_id``
(what llama.cpp runs) in BF16, and in Q8_0 and Q4_0 beside wint8 and wint4. Beside int8 and 4 bits stands our own bfloat16 too: that ratio is what quantising brings.

What to expect. One token reads each chosen expert once and multiplies each weight once, so it takes
bytes / read rate: of the 21B 141.6 MB in bfloat16, 70.8 in int8, 35.4 in 4 bits, and at 42 GB/s 3.4,
1.7 and 0.84 ms, ratios 2 and 4. On a Zen 5 core 4-bit weights from L2 are multiplied at 63 GB/s of
weights and int8 ones at 62, about twice what memory gives a core: both should stay bound by memory.
Eight tokens use about 35 of the 64 experts, 64 tokens all of them, with 6 rows each: 1.5 GB of
bfloat16, 36 ms at 42 GB/s, while the products alone would take 10 ms; 4 bits are bound by products
from there on. 512 tokens are 72 GFLOP: 75 ms at 968 GFLOP/s whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ernie_kernels as ek
from expert_layers import SHAPES, Step, Weights, agree
from kt_peer import KtExperts, has_kt_kernel

from ggml_peer import BF16, Q4_0, Q8_0, GgmlExperts, has_ggml
from harness import Case, has_torch, main

TOKENS = [1, 8, 64, 512]
KINDS = {"bfloat16": None, "wint8": "wint8", "wint4": "wint4"}
GGML = {"bfloat16": BF16, "wint8": Q8_0, "wint4": Q4_0}


def has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return has_torch()


def cases(device: str) -> Iterator[Case]:
    for model, shape in SHAPES.items():
        weights = Weights(shape)
        ours = {kind: weights.experts(q, device) for kind, q in KINDS.items()}
        theirs = weights.torch(device) if has_torch() else None
        for kind, experts in ours.items():
            ggml = kt = None
            if device == "cpu" and kind == "bfloat16" and has_kt_kernel():
                kt = KtExperts(weights, ek.num_threads())
            if device == "cpu" and has_ggml():
                ggml = GgmlExperts(weights, ek.num_threads(), GGML[kind])
            for num_tokens in TOKENS:
                step = Step(shape, num_tokens, device)
                peers: dict[str, Callable[[], object]] = {}
                if kind != "bfloat16":
                    peers["bfloat16"] = step.fused_moe(ours["bfloat16"])
                elif theirs is not None:
                    peers["torch"] = step.torch_moe(*theirs)
                    if has_transformers():
                        peers["transformers"] = step.transformers_moe(*theirs, "grouped_mm")
                        peers["eager"] = step.transformers_moe(*theirs, "eager")
                if kt is not None:
                    peers["kt-kernel"] = kt.step(step)
                if ggml is not None:
                    peers["ggml"] = ggml.step(step)
                yield case_of(model, kind, step, step.fused_moe(experts), experts, peers)


def case_of(model, kind, step, run, experts, peers) -> Case:
    num_tokens, top_k = step.weights.shape
    gate_up, down = experts
    nbytes = step.used * (gate_up.nbytes + down.nbytes) / gate_up.num_experts
    weights = gate_up.out_features * gate_up.in_features + down.out_features * down.in_features

    def check() -> None:
        for peer in peers.values():
            result = peer()
            agree(run(), result.numpy().astype("f4") if isinstance(result, ek.Tensor) else result)

    return Case(
        f"fused_moe {kind}",
        f"{model} num_tokens={num_tokens}",
        run,
        peers,
        nbytes=int(nbytes) + 2 * step.x.nbytes,
        flops=2 * num_tokens * top_k * weights,
        # 4 bits are too few to agree with more.
        check=check if kind != "wint4" else None,
    )


if __name__ == "__main__":
    main(cases, __doc__)
