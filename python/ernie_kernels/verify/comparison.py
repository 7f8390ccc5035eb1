"""The engine's trace on one side, the formulas on the other, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ernie_kernels.errors import ConfigError
from ernie_kernels.verify import formulas
from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.engine_trace import EngineTrace, LayerTrace
from ernie_kernels.verify.expert_comparison import ExpertComparison, own_choice
from ernie_kernels.verify.expert_trace import ExpertTrace, as_float64
from ernie_kernels.verify.float64_model import Float64Model
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.judge import Judge
from ernie_kernels.verify.media import Layout
from ernie_kernels.verify.report import PartResult, StageResult, stage_of, worst_of
from ernie_kernels.verify.stored_weights import (
    CHUNK_ROWS,
    LayerWeights,
    Matrix,
    MLPWeights,
    StoredWeights,
)
from ernie_kernels.verify.twin import Twin
from ernie_kernels.verify.vision_comparison import VisionComparison

# What the first layer is given.
INPUTS = ("rows of the prompts", "positions", "banks of experts")


class Comparison:
    """Judges every part on the engine's own input, and runs the float64 model along.

    Args:
        layout: of the prompts that the trace runs.
        vision: of what they show; None in a model of text alone.

    Attributes:
        logits, twin_logits: of the float64 model and of its twin, when all stages have run;
            no twin, no rows.
    """

    def __init__(
        self,
        weights: StoredWeights,
        trace: EngineTrace,
        bounds: Bounds,
        expert_bounds: Bounds,
        bound_scale: float,
        layout: Layout,
        vision: VisionComparison | None = None,
    ) -> None:
        self.logits: Array = np.zeros((0, 0))
        self.twin_logits: Array = np.zeros((0, 0))
        self._weights = weights
        self._trace = trace
        self._bounds = bounds
        self._expert_bounds = expert_bounds
        self._judge = Judge(trace, bounds, bound_scale)
        self._shape = shape = weights.architecture
        self._layout = layout
        self._vision = vision
        self._ids = layout.ids
        if shape.vision is None:
            angles = formulas.rope_angles(layout.positions[0], shape.head_dim, shape.theta)
        else:
            angles = formulas.rope_angles_3d(
                layout.positions, shape.head_dim, shape.theta, shape.num_time_pairs
            )
        self._angles = angles
        twin = Twin(exists=bounds.dtype == "bfloat16")
        self._model = Float64Model(shape, layout.prompts, angles, twin)

    @property
    def num_stages(self) -> int:
        return self._shape.num_layers + 2 + (0 if self._vision is None else self._vision.num_stages)

    def stages(self) -> Iterator[StageResult]:
        if self._vision is not None:
            yield from self._vision.stages()
            self._trace.show(self._vision.traced_features)
        yield self._embedding()
        for index, trace in enumerate(self._trace.layers()):
            yield self._layer(index, trace)
        yield self._head()

    # --------------------------------------------------------------------------- the three stages

    def _embedding(self) -> StageResult:
        """All rows of the table: a lookup is a copy. And what stands for images and videos."""
        hidden = np.zeros((len(self._ids), self._shape.hidden_size))
        looked_up = hidden.copy()
        results = []
        stored = self._weights.table_rows("model.embed_tokens.weight")
        ours = self._trace.embedding_rows(CHUNK_ROWS)
        for (first, rows), (_, got) in zip(stored, ours, strict=True):
            results.append(self._judge.part("table", got, self._bounds.table(rows)))
            here = (self._ids >= first) & (self._ids < first + len(rows))
            hidden[here] = rows[self._ids[here] - first]
            looked_up[here] = got[self._ids[here] - first]
        parts = [worst_of(results)]
        places = self._layout.feature_rows
        features = np.zeros((0, self._shape.hidden_size))
        if self._vision is not None:
            features = self._vision.features
            looked_up[places] = as_float64(self._vision.traced_features)
        entered, *found = self._trace.inputs()
        wanted: tuple[Array, ...] = (
            looked_up,
            self._layout.positions.astype(np.float64),
            self._layout.banks.astype(np.float64),
        )
        for name, actual, exact in zip(INPUTS, (entered, *found), wanted, strict=True):
            parts.append(self._judge.part(name, actual, Expected(exact, np.zeros_like(exact))))
        self._model.embed(hidden, places, features)
        return stage_of("embedding", entered, self._model.hidden, parts)

    def _layer(self, index: int, trace: LayerTrace) -> StageResult:
        weights, eps = self._weights.layer(index), self._shape.eps
        layer = self._trace.model.model.layers[index]
        parts: list[PartResult] = []
        if trace.hidden is not None:
            entered = self._bounds.sum(trace.hidden, trace.residual)
            parts.append(self._judge.part("residual", trace.entered, entered))
        parts += self._judge.norm(
            "input_layernorm", layer.input_layernorm, weights.input_norm, eps, trace.entered,
            trace.normed,
        )  # fmt: skip
        parts += self._attention(layer.self_attn, weights, trace)
        middle = self._bounds.sum(trace.projected, trace.entered)
        parts.append(self._judge.part("residual after attention", trace.middle, middle))
        parts += self._judge.norm(
            "post_attention_layernorm", layer.post_attention_layernorm, weights.post_norm, eps,
            trace.middle, trace.middle_normed,
        )  # fmt: skip
        self._model.attention(weights)
        others = (0, 0.0)
        if trace.experts is not None and weights.routers:
            ids, banks = trace.experts.ids, self._layout.banks
            logits = self._model.route(weights.post_norm, weights.routers, banks, ids)
            biases = np.array([router.bias for router in weights.routers])[banks]
            others = own_choice(logits, biases, ids % self._shape.experts.count)
            parts += self._experts(index, layer.mlp, weights, trace, trace.experts)
        elif trace.gated is not None and weights.mlp is not None and not weights.routers:
            self._model.dense(weights.post_norm, weights.mlp)
            parts += self._mlp(layer.mlp, weights.mlp, trace, trace.gated)
        else:
            raise ConfigError(f"verify: layer {index} has experts in one of the two models only")
        return stage_of(
            f"layer {index}", trace.middle + trace.down, self._model.hidden, parts, *others
        )

    def _attention(
        self, attention: Any, weights: LayerWeights, trace: LayerTrace
    ) -> Iterator[PartResult]:
        projections = {"q_proj": weights.q, "k_proj": weights.k, "v_proj": weights.v}
        yield from self._judge.weights_of(attention.qkv_proj, projections)
        results = {"q_proj": trace.query, "k_proj": trace.key, "v_proj": trace.value}
        for name, actual in results.items():
            projected = self._bounds.linear(trace.normed, projections[name])
            expected = Expected(
                projected.value.reshape(actual.shape), projected.bound.reshape(actual.shape)
            )
            if name == "v_proj":
                yield self._judge.part(name, actual, expected)
            else:
                turned = self._bounds.rotated(expected, self._angles)
                yield self._judge.part(f"{name} and RoPE", actual, turned)
        attended = []
        for rows in self._layout.sequences:
            expected = self._bounds.attention(trace.query[rows], trace.key[rows], trace.value[rows])
            attended.append(self._judge.part("attention", trace.attention[rows], expected))
        yield worst_of(attended)
        yield from self._judge.weights_of(attention.o_proj, {"o_proj": weights.o})
        given = trace.attention.reshape(len(trace.attention), -1)
        yield self._judge.part("o_proj", trace.projected, self._bounds.linear(given, weights.o))

    def _mlp(
        self, layer: Any, mlp: MLPWeights, trace: LayerTrace, gated: Array
    ) -> Iterator[PartResult]:
        matrices = {"gate_proj": mlp.gate, "up_proj": mlp.up}
        yield from self._judge.weights_of(layer.gate_up_proj, matrices)
        expected = self._bounds.gated(trace.middle_normed, mlp.gate, mlp.up)
        yield self._judge.part("gate_proj and up_proj", gated, expected)
        yield from self._judge.weights_of(layer.down_proj, {"down_proj": mlp.down})
        yield self._judge.part("down_proj", trace.down, self._bounds.linear(gated, mlp.down))

    def _experts(
        self,
        index: int,
        moe: Any,
        weights: LayerWeights,
        trace: LayerTrace,
        experts: ExpertTrace,
    ) -> Iterator[PartResult]:
        layer = ExpertComparison(
            self._judge, self._expert_bounds, moe, trace, experts, self._shape.experts,
            self._layout.banks,
        )  # fmt: skip
        yield from layer.routing(weights.routers)
        if weights.mlp is not None:
            yield from layer.shared(weights.mlp)
        yield from layer.all_experts(self._every_expert(index))
        self._model.end_experts(weights.mlp)

    def _every_expert(self, layer: int) -> Iterator[MLPWeights]:
        """One after the other, each read once for both the engine and the float64 model."""
        shape = self._shape.experts
        for index in range(shape.count * len(shape.widths)):
            mlp = self._weights.expert(layer, index)
            self._model.add_expert(index, mlp)
            yield mlp

    def _head(self) -> StageResult:
        left, residual, entered, normed = self._trace.final()
        norm = self._weights.vector("model.norm.weight")
        parts = [self._judge.part("residual", entered, self._bounds.sum(left, residual))]
        parts += self._judge.norm(
            "norm", self._trace.model.model.norm, norm, self._shape.eps, entered, normed
        )
        signs = self._judge.signs(self._shape.hidden_size)
        probes = {
            "head": (normed, self._trace.logits(normed)),
            "head weights": (signs, self._trace.logits(signs)),
        }
        x = self._model.final(norm)
        logits = np.empty((len(x), self._shape.vocab_size))
        results: dict[str, list[PartResult]] = {name: [] for name in probes}
        table = "lm_head.weight" if self._weights.has_head else "model.embed_tokens.weight"
        for first, rows in self._weights.table_rows(table):
            columns = slice(first, first + len(rows))
            logits[:, columns] = formulas.linear(x, rows)
            for name, (given, actual) in probes.items():
                expected = self._bounds.linear(given, Matrix(rows, None), dtype="float32")
                results[name].append(self._judge.part(name, actual[:, columns], expected))
        parts += [worst_of(each) for each in results.values()]
        self.logits, self.twin_logits = np.split(logits, [len(self._ids)])
        return stage_of("head", probes["head"][1], self.logits, parts)
