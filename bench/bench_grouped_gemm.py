"""One product of a layer's experts beside ``torch._grouped_mm``: rows sorted by expert.

python bench/bench_grouped_gemm.py [--threads 2] [--only 21B] [--json results.jsonl]

What to expect is in bench_fused_moe.py: bytes of the experts that have rows over the read rate, or
products over the rate of products, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops
from expert_layers import SHAPES, Step, Weights, agree, iter_forever

from harness import Case, has_torch, main, torch_tensor

TOKENS = [1, 8, 64, 512]
KINDS = {"bfloat16": None, "wint8": "wint8", "wint4": "wint4"}


def cases(device: str) -> Iterator[Case]:
    for model, shape in SHAPES.items():
        weights = Weights(shape)
        theirs = weights.torch(device) if has_torch() else None
        for kind, quantization in KINDS.items():
            gate_up, down = weights.experts(quantization, device)
            for num_tokens in TOKENS:
                step = Step(shape, num_tokens, device)
                title = f"{model} num_tokens={num_tokens}"
                yield gated_case(f"gate_up {kind}", title, device, step, gate_up)
                yield product_case(
                    f"down {kind}", title, device, step, down, theirs[1] if theirs else None
                )


def sorted_steps(step: Step, experts: ops.ExpertWeights, device: str) -> list[tuple]:
    """expert_offsets and source_rows of each choice."""
    sorts = [ops.moe_sort(ek.from_numpy(ids, device), experts.num_experts) for ids in step.ids]
    return [(offsets, source_rows) for offsets, _, source_rows in sorts]


def bytes_of(step: Step, experts: ops.ExpertWeights) -> int:
    return int(step.used * experts.nbytes / experts.num_experts)


def flops_of(step: Step, experts: ops.ExpertWeights) -> int:
    return 2 * step.weights.size * experts.out_features * experts.in_features


def gated_case(op, title, device, step, experts) -> Case:
    x = ek.from_numpy(step.x, device)
    sorts, turn = sorted_steps(step, experts, device), iter_forever(len(step.ids))

    def run():
        offsets, source_rows = sorts[turn()]
        return ops.grouped_linear_silu_and_mul(x, experts, offsets, source_rows=source_rows)

    return Case(op, title, run, nbytes=bytes_of(step, experts), flops=flops_of(step, experts))


def product_case(op, title, device, step, experts, their_weight) -> Case:
    rows = np.random.default_rng(2).standard_normal(
        (step.weights.size, experts.in_features), np.float32
    )
    rows = rows.astype(step.x.dtype)
    x, sorts = ek.from_numpy(rows, device), sorted_steps(step, experts, device)
    turn = iter_forever(len(step.ids))

    def run():
        return ops.grouped_linear(x, experts, sorts[turn()][0])

    peers = {}
    if their_weight is not None and op == "down bfloat16":
        import torch

        tx = torch_tensor(rows, device)
        ends = [torch.from_numpy(offsets.numpy()[1:].astype(np.int32)) for offsets, _ in sorts]
        ends = [end.to(device) for end in ends]
        their_turn, columns = iter_forever(len(step.ids)), their_weight.transpose(1, 2)
        peers["torch"] = lambda: torch._grouped_mm(tx, columns, offs=ends[their_turn()])
    return Case(
        op,
        title,
        run,
        peers,
        nbytes=bytes_of(step, experts),
        flops=flops_of(step, experts),
        check=lambda: [agree(run(), peer()) for peer in peers.values()],
    )


if __name__ == "__main__":
    main(cases, __doc__)
