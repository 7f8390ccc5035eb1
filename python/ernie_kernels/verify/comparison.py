"""The engine's trace on one side, the formulas on the other, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_kernels.verify import formulas
from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.engine_trace import EngineTrace, LayerTrace
from ernie_kernels.verify.float64_model import Float64Model
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.report import PartResult, StageResult, worst_of
from ernie_kernels.verify.stored_weights import CHUNK_ROWS, LayerWeights, Matrix, StoredWeights


class Comparison:
    """Judges every part on the engine's own input, and runs the float64 model along.

    Attributes:
        logits, twin_logits: of the float64 model and of its twin, when all stages have run;
            no twin, no rows.
    """

    def __init__(
        self,
        weights: StoredWeights,
        trace: EngineTrace,
        bounds: Bounds,
        bound_scale: float,
        prompts: list[npt.NDArray[np.int64]],
    ) -> None:
        self.logits: Array = np.zeros((0, 0))
        self.twin_logits: Array = np.zeros((0, 0))
        self._weights = weights
        self._trace = trace
        self._bounds = bounds
        self._scale = bound_scale
        self._shape = weights.architecture
        self._model = Float64Model(self._shape, prompts, has_twin=bounds.dtype == "bfloat16")
        self._ids = np.concatenate(prompts)
        ends = np.cumsum([len(ids) for ids in prompts])
        self._sequences = [slice(e - len(i), e) for e, i in zip(ends, prompts, strict=True)]
        positions = np.concatenate([np.arange(len(ids)) for ids in prompts])
        self._angles = formulas.rope_angles(positions, self._shape.head_dim, self._shape.theta)
        self._random = np.random.default_rng(7)

    def stages(self) -> Iterator[StageResult]:
        yield self._embedding()
        for index, trace in enumerate(self._trace.layers()):
            yield self._layer(index, trace)
        yield self._head()

    def _judge(self, name: str, actual: Array, expected: Expected) -> PartResult:
        return PartResult.of(name, actual, expected, self._scale)

    # --------------------------------------------------------------------------- the three stages

    def _embedding(self) -> StageResult:
        """All rows of the table: a lookup is a copy."""
        hidden = np.zeros((len(self._ids), self._shape.hidden_size))
        looked_up = hidden.copy()
        results = []
        stored = self._weights.table_rows("model.embed_tokens.weight")
        ours = self._trace.embedding_rows(CHUNK_ROWS)
        for (first, rows), (_, got) in zip(stored, ours, strict=True):
            results.append(self._judge("table", got, self._bounds.table(rows)))
            here = (self._ids >= first) & (self._ids < first + len(rows))
            hidden[here] = rows[self._ids[here] - first]
            looked_up[here] = got[self._ids[here] - first]
        self._model.embed(hidden)
        return _stage("embedding", looked_up, hidden, [worst_of(results)])

    def _layer(self, index: int, trace: LayerTrace) -> StageResult:
        weights = self._weights.layer(index)
        layer = self._trace.model.model.layers[index]
        parts: list[PartResult] = []
        if trace.hidden is not None:
            entered = self._bounds.sum(trace.hidden, trace.residual)
            parts.append(self._judge("residual", trace.entered, entered))
        parts += self._norm(
            "input_layernorm", layer.input_layernorm, weights.input_norm, trace.entered,
            trace.normed,
        )  # fmt: skip
        parts += self._attention(layer.self_attn, weights, trace)
        middle = self._bounds.sum(trace.projected, trace.entered)
        parts.append(self._judge("residual after attention", trace.middle, middle))
        parts += self._norm(
            "post_attention_layernorm", layer.post_attention_layernorm, weights.post_norm,
            trace.middle, trace.middle_normed,
        )  # fmt: skip
        parts += self._mlp(layer.mlp, weights, trace)
        self._model.layer(weights)
        return _stage(f"layer {index}", trace.middle + trace.down, self._model.hidden, parts)

    def _attention(
        self, attention: Any, weights: LayerWeights, trace: LayerTrace
    ) -> Iterator[PartResult]:
        projections = {"q": weights.q, "k": weights.k, "v": weights.v}
        yield from self._weights_of(attention.qkv_proj, projections)
        results = {"q": trace.query, "k": trace.key, "v": trace.value}
        for letter, actual in results.items():
            projected = self._bounds.linear(trace.normed, projections[letter])
            expected = Expected(
                projected.value.reshape(actual.shape), projected.bound.reshape(actual.shape)
            )
            if letter == "v":
                yield self._judge("v_proj", actual, expected)
            else:
                turned = self._bounds.rotated(expected, self._angles)
                yield self._judge(f"{letter}_proj and RoPE", actual, turned)
        attended = []
        for rows in self._sequences:
            expected = self._bounds.attention(trace.query[rows], trace.key[rows], trace.value[rows])
            attended.append(self._judge("attention", trace.attention[rows], expected))
        yield worst_of(attended)
        yield from self._weights_of(attention.o_proj, {"o": weights.o})
        given = trace.attention.reshape(len(trace.attention), -1)
        yield self._judge("o_proj", trace.projected, self._bounds.linear(given, weights.o))

    def _mlp(self, mlp: Any, weights: LayerWeights, trace: LayerTrace) -> Iterator[PartResult]:
        yield from self._weights_of(mlp.gate_up_proj, {"gate": weights.gate, "up": weights.up})
        gated = self._bounds.gated(trace.middle_normed, weights.gate, weights.up)
        yield self._judge("gate_proj and up_proj", trace.gated, gated)
        yield from self._weights_of(mlp.down_proj, {"down": weights.down})
        yield self._judge("down_proj", trace.down, self._bounds.linear(trace.gated, weights.down))

    def _head(self) -> StageResult:
        left, residual, entered, normed = self._trace.final()
        norm = self._weights.vector("model.norm.weight")
        parts = [self._judge("residual", entered, self._bounds.sum(left, residual))]
        parts += self._norm("norm", self._trace.model.model.norm, norm, entered, normed)
        signs = self._signs(self._shape.hidden_size)
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
                results[name].append(self._judge(name, actual[:, columns], expected))
        parts += [worst_of(each) for each in results.values()]
        self.logits, self.twin_logits = np.split(logits, [len(self._ids)])
        return _stage("head", probes["head"][1], self.logits, parts)

    # ------------------------------------------------------------------------------------- probes

    def _norm(
        self, name: str, norm: Any, weight: Array, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        """A norm on its own input, and on one so small that eps counts."""
        eps = self._shape.eps
        yield self._judge(name, actual, self._bounds.rms_norm(x, weight, eps))
        # Mean squares from a hundredth of eps to eps: there a wrong eps is as large as the result.
        scale = np.sqrt(eps * np.array([[0.01], [0.1], [1.0]]))
        small = self._random.standard_normal((3, len(weight))) * scale
        rounded = self._trace.tensor(small).numpy().astype(np.float64)
        expected = self._bounds.rms_norm(rounded, weight, eps)
        yield self._judge(f"{name} near eps", self._trace.norm(norm, rounded), expected)

    def _weights_of(self, layer: Any, matrices: dict[str, Matrix]) -> Iterator[PartResult]:
        """Rows of ones and minus ones weigh every weight alike; sums are not rounded to 16 bits."""
        signs = self._signs(next(iter(matrices.values())).weight.shape[1])
        actual = self._trace.linear(layer, signs)
        first = 0
        for letter, matrix in matrices.items():
            rows = slice(first, first + len(matrix.weight))
            first = rows.stop
            expected = self._bounds.linear(signs, matrix, dtype="float32")
            yield self._judge(f"{letter}_proj weights", actual[:, rows], expected)

    def _signs(self, width: int) -> Array:
        return self._random.choice((-1.0, 1.0), (2, width))


def _stage(name: str, actual: Array, expected: Array, parts: list[PartResult]) -> StageResult:
    difference = actual - expected
    norm = float(np.linalg.norm(expected))
    relative = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    return StageResult(name, float(np.abs(difference).max()), relative, tuple(parts))
