"""Layers with experts: of many SwiGLU MLPs a router chooses a few for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_kernels import ops
from ernie_kernels.models.layers import MLP
from ernie_kernels.models.quantization import W8A8

if TYPE_CHECKING:
    from ernie_kernels._core import Tensor
    from ernie_kernels.models.config import ModelConfig
    from ernie_kernels.models.layer_plan import LayerPlan
    from ernie_kernels.models.weights import WeightReader
    from ernie_kernels.models.workspace import ExpertBuffers


class Router:
    """Chooses experts and weighs them, all in float32.

    ``softmax(gate(x))`` plus a bias chooses; without it, divided by the sum over the chosen, it
    weighs.
    """

    def __init__(self, config: ModelConfig, weights: WeightReader, name: str, top_k: int) -> None:
        self.gate = weights.router(f"{name}.gate.weight")
        self.correction_bias = weights.correction_bias(
            f"{name}.moe_statics.e_score_correction_bias"
        )
        self.top_k = top_k
        self.norm_min = config.norm_min

    def __call__(
        self, hidden_states: Tensor, buffers: ExpertBuffers, flags: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weights and ids, ``[num_tokens, top_k]``; ``flags`` of tokens with non-finite logits is 1."""
        x = hidden_states
        if buffers.router_input is not None:
            # A lookup in a table copies rows, and to a wider type exactly.
            x = ops.embedding(buffers.row_numbers, x, out=buffers.router_input)
        return ops.moe_route(
            self.gate(x, out=buffers.router_logits),
            self.correction_bias,
            self.top_k,
            norm_min=self.norm_min,
            flags=flags,
            topk_weights=buffers.topk_weights,
            topk_ids=buffers.topk_ids,
        )


class MoE:
    """``sum of weight * expert(x)`` over the chosen experts, plus the shared experts of ``x``.

    The shared experts are one MLP that every token goes through, unweighted.
    """

    def __init__(
        self, config: ModelConfig, weights: WeightReader, name: str, plan: LayerPlan
    ) -> None:
        self.router = Router(config, weights, name, plan.top_k)
        self.gate_up_proj = weights.experts(name, plan.num_experts, "gate_proj", "up_proj")
        self.down_proj = weights.experts(name, plan.num_experts, "down_proj")
        self.int8_activations = weights.quantization.experts == W8A8
        self.shared_experts = None
        if plan.shared_intermediate_size:
            self.shared_experts = MLP(weights, f"{name}.shared_experts")

    def __call__(
        self, hidden_states: Tensor, buffers: ExpertBuffers, flags: Tensor | None
    ) -> Tensor:
        """The result is in ``buffers``."""
        topk_weights, topk_ids = self.router(hidden_states, buffers, flags)
        shared = None
        if self.shared_experts is not None:
            shared = self.shared_experts(hidden_states, buffers.shared, out=buffers.out)
        return ops.fused_moe(
            hidden_states,
            topk_weights,
            topk_ids,
            self.gate_up_proj,
            self.down_proj,
            shared=shared,
            int8_activations=self.int8_activations,
            out=buffers.out,
            workspace=buffers.workspace,
        )
