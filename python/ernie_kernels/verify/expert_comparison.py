"""Layers with experts, part by part: router, choice, weights, every expert, their sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels.verify import routing
from ernie_kernels.verify.architecture import ExpertShape
from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.engine_trace import LayerTrace
from ernie_kernels.verify.expert_trace import ExpertTrace, as_float64
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.judge import Judge
from ernie_kernels.verify.report import PartResult, worst_of
from ernie_kernels.verify.routing import Ids
from ernie_kernels.verify.stored_weights import Matrix, MLPWeights, RouterWeights

if TYPE_CHECKING:
    from ernie_kernels.models.experts import MoE

FLOAT32 = Bounds("float32")  # of the router, whatever the activations are


@dataclass(slots=True)
class ExpertComparison:
    """One layer. Expert weights are handed in one after the other: a layer's do not fit in float64.

    Args:
        bounds: of the experts' matrices.
        banks: that each token is to ask.
    """

    judge: Judge
    bounds: Bounds
    moe: MoE
    trace: LayerTrace
    experts: ExpertTrace
    shape: ExpertShape
    banks: Ids

    def routing(self, routers: tuple[RouterWeights, ...]) -> Iterator[PartResult]:
        """Of each bank; the parts of the second are called by what it is for."""
        biases = as_float64(self.moe.router.correction_bias)
        for bank, router in enumerate(routers):
            prefix = "vision " if bank else ""
            gate = Matrix(router.gate, None)
            yield from self.judge.weights_of(
                self.moe.router.gates[bank], {f"{prefix}router": gate}, FLOAT32
            )
            bias = biases[self._experts_of(bank)]
            exact = Expected(router.bias, np.zeros_like(router.bias))
            yield self.judge.part(f"{prefix}correction bias", bias, exact)
            rows = np.flatnonzero(self.banks == bank)
            if len(rows):
                yield from self._choice(bank, prefix, router, gate, rows)

    def _choice(
        self, bank: int, prefix: str, router: RouterWeights, gate: Matrix, rows: Ids
    ) -> Iterator[PartResult]:
        part, experts = self.judge.part, self.experts
        logits = experts.logits[rows, self._experts_of(bank)]
        # Those of another bank are none of this one's.
        ids = experts.ids[rows] - bank * self.shape.count
        given = self.trace.middle_normed[rows]
        yield part(f"{prefix}router", logits, FLOAT32.linear(given, gate))
        chosen, expected = routing.choice(logits, router.bias, ids)
        yield part(f"choice of {prefix}experts", chosen, expected)
        weighed = routing.weights(logits, ids % self.shape.count, self.shape.norm_min)
        yield part(f"weights of {prefix}experts", experts.weights[rows], weighed)

    def _experts_of(self, bank: int) -> slice:
        return slice(bank * self.shape.count, (bank + 1) * self.shape.count)

    def shared(self, mlp: MLPWeights) -> Iterator[PartResult]:
        layer, part, bounds = self.moe.shared_experts, self.judge.part, self.judge.bounds
        if layer is None or self.experts.shared is None or self.experts.shared_gated is None:
            yield part("shared experts", np.full(1, np.nan), Expected(np.zeros(1), np.zeros(1)))
            return
        weights_of = self.judge.weights_of
        names = {"shared gate_proj": mlp.gate, "shared up_proj": mlp.up}
        yield from weights_of(layer.gate_up_proj, names)
        gated = bounds.gated(self.trace.middle_normed, mlp.gate, mlp.up)
        yield part("shared gate_proj and up_proj", self.experts.shared_gated, gated)
        yield from weights_of(layer.down_proj, {"shared down_proj": mlp.down})
        down = bounds.linear(self.experts.shared_gated, mlp.down)
        yield part("shared down_proj", self.experts.shared, down)

    def all_experts(self, weights: Iterator[MLPWeights]) -> Iterator[PartResult]:
        """Of each kind of part the worst expert's, and the sum over experts.

        Args:
            weights: of the experts of all banks in turn.
        """
        hidden = self.trace.middle_normed.shape[1]
        kinds: dict[str, list[PartResult]] = {}
        for bank, width in enumerate(self.shape.widths):
            signs = self.judge.signs(hidden), self.judge.signs(width)
            layers = self.moe.gate_up_projs[bank], self.moe.down_projs[bank]
            through = [
                self.judge.trace.expert_linear(layer, each)
                for layer, each in zip(layers, signs, strict=True)
            ]
            for number in range(self.shape.count):
                index = bank * self.shape.count + number
                rows = slice(2 * number, 2 * number + 2)
                for kind, part in self._expert(
                    index, next(weights), signs, through[0][rows], through[1][rows]
                ):
                    kinds.setdefault(kind, []).append(part)
        yield from (worst_of(parts) for parts in kinds.values())
        sums = routing.combined(
            self.experts.outputs,
            self.experts.weights,
            self.experts.shared,
            self.judge.bounds.unit,
        )
        yield self.judge.part("sum over experts", self.experts.combined, sums)
        # The fused op has the bits of the ops that it stands for.
        apart = Expected(self.experts.combined, np.zeros_like(self.experts.combined))
        yield self.judge.part("fused experts", self.trace.down, apart)

    def _expert(
        self, index: int, mlp: MLPWeights, signs: tuple[Array, Array], gate_up: Array, down: Array
    ) -> Iterator[tuple[str, PartResult]]:
        """One expert's weights, by what it makes of ``signs``, and what its tokens got."""
        width = len(mlp.gate.weight)
        for kind, actual, given, matrix in (
            ("gate_proj weights", gate_up[:, :width], signs[0], mlp.gate),
            ("up_proj weights", gate_up[:, width:], signs[0], mlp.up),
            ("down_proj weights", down, signs[1], mlp.down),
        ):
            expected = self.bounds.linear(given, matrix, dtype="float32")
            yield kind, self.judge.part(f"experts.{index}.{kind}", actual, expected)
        yield from self._tokens_of(index, mlp)

    def _tokens_of(self, index: int, mlp: MLPWeights) -> Iterator[tuple[str, PartResult]]:
        tokens, slots = np.nonzero(self.experts.ids == index)
        of_bank = self.experts.gated[index // self.shape.count]
        if not len(tokens) or of_bank is None:
            return
        gated, outputs = of_bank[tokens, slots], self.experts.outputs[tokens, slots]
        expected = self.bounds.gated(self.trace.middle_normed[tokens], mlp.gate, mlp.up)
        name = f"experts.{index}.gate_proj and up_proj"
        yield "gate_proj and up_proj", self.judge.part(name, gated, expected)
        expected = self.bounds.linear(gated, mlp.down)
        yield "down_proj", self.judge.part(f"experts.{index}.down_proj", outputs, expected)


def own_choice(logits: Array, bias: Array, ids: Ids) -> tuple[int, float]:
    """Of how many tokens a model with these logits would choose other experts, and by how much their
    scores are apart at most."""
    scores = routing.softmax(logits)[0] + bias
    top_k = ids.shape[-1]
    lowest_taken = np.take_along_axis(scores, ids, -1).min(-1)
    lowest_wanted = -np.partition(-scores, top_k - 1, axis=-1)[:, top_k - 1]
    gap = lowest_wanted - lowest_taken
    return int((gap > 0).sum()), float(gap.max())
