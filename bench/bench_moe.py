"""Routing, dispatch and combination of experts beside the same in torch operations.

python bench/bench_moe.py [--threads 2] [--json results.jsonl]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

NUM_EXPERTS = 64
MODELS = {"21B": (2560, 6), "300B": (8192, 8)}  # hidden_size, top_k
TOKENS = [1, 8, 512]


def cases(device: str) -> Iterator[Case]:
    for model, (hidden_size, top_k) in MODELS.items():
        for num_tokens in TOKENS:
            title = f"{model} num_tokens={num_tokens} hidden_size={hidden_size} top_k={top_k}"
            layer = Layer(device, num_tokens, hidden_size, top_k)
            peers = layer.torch_peers(device) if has_torch() else {}
            for op, ours in layer.ours().items():
                yield Case(
                    op,
                    title,
                    ours,
                    {"torch": peers[op]} if peers else {},
                    nbytes=layer.nbytes[op],
                    check=(lambda a=ours, b=peers[op]: agree(a(), b())) if peers else None,
                )


def agree(ours: ek.Tensor, theirs) -> None:
    expected = theirs.float().cpu().numpy()
    error = np.abs(ours.numpy().astype(np.float32) - expected)
    assert error.max() < 0.05 * np.abs(expected).max()


class Layer:
    """The inputs of one layer, and where the ops write."""

    def __init__(self, device: str, num_tokens: int, hidden_size: int, top_k: int) -> None:
        rng = np.random.default_rng(0)
        rows = num_tokens * top_k

        def bfloat16(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

        self.arrays = {
            "logits": rng.standard_normal((num_tokens, NUM_EXPERTS), np.float32),
            "bias": rng.standard_normal(NUM_EXPERTS, np.float32) * np.float32(0.02),
            "x": bfloat16(num_tokens, hidden_size),
            "results": bfloat16(rows, hidden_size),
        }
        self.tensors = {name: ek.from_numpy(a, device) for name, a in self.arrays.items()}
        self.flags = ek.from_numpy(np.zeros(num_tokens, np.uint8), device)
        self.out = ek.empty((num_tokens, hidden_size), "bfloat16", device)
        self.weights, self.ids = ops.moe_route(self.tensors["logits"], self.tensors["bias"], top_k)
        self.dispatched = ops.moe_dispatch(self.tensors["x"], self.ids, NUM_EXPERTS)
        x_bytes, rows_bytes = self.arrays["x"].nbytes, self.arrays["results"].nbytes
        self.nbytes = {
            "moe_route": self.arrays["logits"].nbytes + 8 * rows,
            "moe_dispatch": x_bytes + rows_bytes + 8 * rows,
            "moe_combine": rows_bytes + 2 * x_bytes + 8 * rows,
        }

    def ours(self) -> dict[str, Callable[[], ek.Tensor]]:
        t, (permuted, offsets, inverse) = self.tensors, self.dispatched
        top_k = self.ids.shape[1]
        given = {"flags": self.flags, "topk_weights": self.weights, "topk_ids": self.ids}
        places = {"permuted": permuted, "expert_offsets": offsets, "inverse": inverse}
        return {
            "moe_route": lambda: ops.moe_route(t["logits"], t["bias"], top_k, **given)[0],
            "moe_dispatch": lambda: ops.moe_dispatch(t["x"], self.ids, NUM_EXPERTS, **places)[0],
            "moe_combine": lambda: ops.moe_combine(
                t["results"], inverse, self.weights, shared=t["x"], out=self.out
            ),
        }

    def torch_peers(self, device: str) -> dict[str, Callable[[], object]]:
        t = {name: torch_tensor(array, device) for name, array in self.arrays.items()}
        ids, inverse, weights = (
            torch_tensor(x.numpy(), device) for x in (self.ids, self.dispatched[2], self.weights)
        )
        ids, inverse, top_k = ids.long(), inverse.long(), ids.shape[1]

        def route():
            p = t["logits"].softmax(-1)
            chosen = p.gather(1, (p + t["bias"]).topk(top_k).indices)
            return chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-12)

        def dispatch():
            order = ids.flatten().argsort(stable=True)
            return t["x"].index_select(0, order // top_k)

        def combine():
            rows = t["results"].index_select(0, inverse.flatten()).view(*inverse.shape, -1)
            return (rows * weights[..., None].to(rows.dtype)).sum(1) + t["x"]

        return {"moe_route": route, "moe_dispatch": dispatch, "moe_combine": combine}


if __name__ == "__main__":
    main(cases, __doc__)
