"""Layers with experts: of many SwiGLU MLPs a router chooses a few for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_kernels import ops
from ernie_kernels.models.layers import MLP
from ernie_kernels.models.quantization import W8A8
from ernie_kernels.models.weight_specs import router_names

if TYPE_CHECKING:
    from ernie_kernels._core import Tensor
    from ernie_kernels.models.config import ModelConfig
    from ernie_kernels.models.layer_plan import LayerPlan
    from ernie_kernels.models.layers import Linear
    from ernie_kernels.models.weights import WeightReader
    from ernie_kernels.models.workspace import ExpertBuffers
    from ernie_kernels.ops import ExpertWeights


class Router:
    """Chooses experts and weighs them, all in float32.

    ``softmax(gate(x))`` plus a bias chooses; without it, divided by the sum over the chosen, it
    weighs. Each bank of experts has its own gate and biases.
    """

    def __init__(
        self, config: ModelConfig, weights: WeightReader, name: str, plan: LayerPlan
    ) -> None:
        names = router_names(name, len(plan.bank_widths))
        self.gates = [weights.router(each) for each in names]
        # Those of all banks, the text's first.
        self.correction_bias = weights.correction_bias(
            f"{name}.moe_statics.e_score_correction_bias"
        )
        self.num_experts = plan.num_experts
        self.top_k = plan.top_k
        self.norm_min = config.norm_min

    @property
    def gate(self) -> Linear:
        """That of the text bank."""
        return self.gates[0]

    def __call__(
        self,
        hidden_states: Tensor,
        buffers: ExpertBuffers,
        flags: Tensor | None,
        banks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Weights and ids, ``[num_tokens, top_k]``; ``flags`` of tokens with non-finite logits is 1."""
        x = hidden_states
        if buffers.router_input is not None:
            # A lookup in a table copies rows, and to a wider type exactly.
            x = ops.embedding(buffers.row_numbers, x, out=buffers.router_input)
        count = self.num_experts
        gates = self.gates if banks is not None else self.gates[:1]
        for index, gate in enumerate(gates):
            gate(x, out=buffers.router_logits[:, index * count : (index + 1) * count])
        return ops.moe_route(
            buffers.router_logits[:, : len(gates) * count],
            self.correction_bias[: len(gates) * count],
            self.top_k,
            banks=banks,
            num_banks=len(gates),
            norm_min=self.norm_min,
            flags=flags,
            topk_weights=buffers.topk_weights,
            topk_ids=buffers.topk_ids,
        )


class MoE:
    """``sum of weight * expert(x)`` over the chosen experts, plus the shared experts of ``x``.

    The shared experts are one MLP that every token goes through, unweighted. Of two banks a token
    chooses in one; a step of text alone does not touch the other.
    """

    def __init__(
        self, config: ModelConfig, weights: WeightReader, name: str, plan: LayerPlan
    ) -> None:
        self.router = Router(config, weights, name, plan)
        count = plan.num_experts
        numbers = [range(i * count, (i + 1) * count) for i in range(len(plan.bank_widths))]
        self.gate_up_projs = [weights.experts(name, n, "gate_proj", "up_proj") for n in numbers]
        self.down_projs = [weights.experts(name, n, "down_proj") for n in numbers]
        self.int8_activations = weights.quantization.experts == W8A8
        self.shared_experts = None
        if plan.shared_intermediate_size:
            self.shared_experts = MLP(weights, f"{name}.shared_experts")

    @property
    def gate_up_proj(self) -> ExpertWeights:
        """That of the text bank."""
        return self.gate_up_projs[0]

    @property
    def down_proj(self) -> ExpertWeights:
        """That of the text bank."""
        return self.down_projs[0]

    def __call__(
        self,
        hidden_states: Tensor,
        buffers: ExpertBuffers,
        flags: Tensor | None,
        banks: Tensor | None,
    ) -> Tensor:
        """The result is in ``buffers``. ``banks``: ``[num_tokens]`` uint8; None: all text."""
        topk_weights, topk_ids = self.router(hidden_states, buffers, flags, banks)
        shared = None
        if self.shared_experts is not None:
            shared = self.shared_experts(hidden_states, buffers.shared, out=buffers.out)
        return ops.fused_moe(
            hidden_states,
            topk_weights,
            topk_ids,
            self.gate_up_projs if banks is not None else self.gate_up_proj,
            self.down_projs if banks is not None else self.down_proj,
            shared=shared,
            int8_activations=self.int8_activations,
            out=buffers.out,
            workspace=buffers.workspace,
        )
