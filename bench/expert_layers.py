"""Layers of experts with random weights, ours and the peers', for bench_fused_moe.py and its kin.

Every expert holds the same random matrix: what is timed is reading and multiplying, which do not look at
the values, and filling gigabytes with random numbers would take longer than the bench.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import torch_tensor

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Shape:
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int


# Of ERNIE-4.5's two sizes. The 300B has 64 experts too: 16 exceed any cache and fit in memory.
SHAPES = {"21B": Shape(64, 6, 2560, 1536), "300B": Shape(16, 8, 8192, 3584)}


class Weights:
    """One random matrix of each product, float32 values that bfloat16 holds."""

    def __init__(self, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        self.shape = shape
        h, i = shape.hidden_size, shape.intermediate_size
        self.gate_up = (rng.standard_normal((2 * i, h), np.float32) / np.sqrt(h)).astype(BF16)
        self.down = (rng.standard_normal((h, i), np.float32) / np.sqrt(i)).astype(BF16)

    def experts(self, quantization: str | None, device: str) -> list[ops.ExpertWeights]:
        """Gate and up projection, and down projection."""
        made = []
        for matrix in (self.gate_up, self.down):
            experts = ops.expert_weights(
                self.shape.num_experts,
                *matrix.shape,
                dtype="bfloat16",
                quantization=quantization,
                device=device,
            )
            for index in range(1 if device == "cpu" else self.shape.num_experts):
                ops.expert_weights_set(experts, index, matrix)
            if device == "cpu":
                for tensor in (experts.weight, experts.scale):
                    if tensor is not None:
                        bits = tensor.numpy().view(f"u{tensor.dtype.itemsize}")
                        bits[1:] = bits[0]
            made.append(experts)
        return made

    def torch(self, device: str) -> list:
        """The same two for torch, ``[num_experts, rows, columns]``."""
        return [
            torch_tensor(matrix, device).repeat(self.shape.num_experts, 1, 1)
            for matrix in (self.gate_up, self.down)
        ]


class Step:
    """Rows of a step, and experts drawn for them anew at each call: weights come from memory."""

    def __init__(self, shape: Shape, num_tokens: int, device: str) -> None:
        rng = np.random.default_rng(1)
        self.x = rng.standard_normal((num_tokens, shape.hidden_size), np.float32).astype(BF16)
        self.weights = rng.random((num_tokens, shape.top_k), np.float32)
        self.weights /= self.weights.sum(1, keepdims=True)
        self.ids = [
            np.stack([rng.permutation(shape.num_experts)[: shape.top_k] for _ in range(num_tokens)])
            .astype(np.int32)
            .reshape(num_tokens, shape.top_k)
            for _ in range(8)
        ]
        self.used = float(np.mean([len(np.unique(ids)) for ids in self.ids]))
        self._device = device
        self._ours = [
            tuple(ek.from_numpy(array, device) for array in (self.x, self.weights, ids))
            for ids in self.ids
        ]

    def fused_moe(self, experts: list[ops.ExpertWeights]) -> Callable[[], ek.Tensor]:
        """Runs the whole layer, without allocating."""
        (num_tokens, top_k), shape = self.weights.shape, experts[0]
        out = ek.empty(self.x.shape, "bfloat16", self._device)
        nbytes = ops.fused_moe_workspace_size(
            num_tokens,
            top_k,
            shape.num_experts,
            shape.in_features,
            shape.out_features // 2,
            dtype="bfloat16",
            device=self._device,
        )
        workspace = ek.empty((nbytes,), "uint8", self._device)
        turn = iter_forever(len(self.ids))

        def run() -> ek.Tensor:
            return ops.fused_moe(*self._ours[turn()], *experts, out=out, workspace=workspace)

        return run

    def torch_moe(self, gate_up, down) -> Callable[[], object]:
        """``torch._grouped_mm`` on sorted rows."""
        import torch

        num_experts, top_k = len(gate_up), self.weights.shape[1]
        x, weights = (torch_tensor(array, self._device) for array in (self.x, self.weights))
        all_ids = [torch_tensor(ids, self._device).long().flatten() for ids in self.ids]
        turn = iter_forever(len(self.ids))

        def run():
            ids = all_ids[turn()]
            order = ids.argsort(stable=True)
            offsets = torch.bincount(ids, minlength=num_experts).cumsum(0).int()
            tokens = order // top_k
            h = torch._grouped_mm(x[tokens], gate_up.transpose(1, 2), offs=offsets)
            gate, up = h.chunk(2, -1)
            gated = torch.nn.functional.silu(gate) * up
            y = torch._grouped_mm(gated, down.transpose(1, 2), offs=offsets)
            y = y * weights.flatten()[order, None]
            return torch.zeros_like(x, dtype=torch.float32).index_add_(0, tokens, y)

        return run

    def transformers_moe(self, gate_up, down, implementation: str) -> Callable[[], object]:
        """The experts of transformers' Ernie4_5_Moe on the same tensors."""
        import torch
        from transformers import Ernie4_5_MoeConfig
        from transformers.models.ernie4_5_moe import modeling_ernie4_5_moe as modeling

        num_experts, hidden_size, intermediate_size = down.shape
        config = Ernie4_5_MoeConfig(
            hidden_size=hidden_size,
            moe_intermediate_size=intermediate_size,
            moe_num_experts=num_experts,
            moe_k=self.weights.shape[1],
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            experts = modeling.Ernie4_5_MoeExperts(config)
        experts.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=False)
        experts.down_proj = torch.nn.Parameter(down, requires_grad=False)
        x, weights = (torch_tensor(array, self._device) for array in (self.x, self.weights))
        weights = weights.to(x.dtype)
        all_ids = [torch_tensor(ids, self._device).long() for ids in self.ids]
        turn = iter_forever(len(self.ids))
        return lambda: experts(x, all_ids[turn()], weights)


def iter_forever(count: int) -> Callable[[], int]:
    state = [-1]

    def turn() -> int:
        state[0] = (state[0] + 1) % count
        return state[0]

    return turn


def agree(ours: ek.Tensor, theirs) -> None:
    """All experts are one: whose turn it is does not matter."""
    got = ours.numpy().astype(np.float32)
    numpy = isinstance(theirs, np.ndarray)
    expected = theirs.astype(np.float32) if numpy else theirs.float().cpu().numpy()
    if expected.ndim == 3:  # of each expert
        expected = expected.sum(1)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
