"""Brings the engine and the formulas together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_kernels import _core
from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ArgumentError, ConfigError
from ernie_kernels.llm import DEMO_FOLDER, LLM
from ernie_kernels.load_arguments import check_folder, check_integer
from ernie_kernels.verify import formulas
from ernie_kernels.verify.bounds import Bounds, Expected
from ernie_kernels.verify.engine_trace import EngineTrace, LayerTrace
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.prompts import make_prompts
from ernie_kernels.verify.report import Limits, LogitsResult, PartResult, Report, StageResult
from ernie_kernels.verify.stored_weights import CHUNK_ROWS, Architecture, Matrix, StoredWeights

Progress = Callable[[Iterator[StageResult], int], Iterator[StageResult]]
WEIGHT_BITS = {"wint8": 8}  # of a quantised weight, its scale per output row


def verify(
    path: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    tokens: int = 64,
    limits: Mapping[str, float] | None = None,
    progress: Progress = lambda stages, _: stages,
    **load_options: Any,
) -> Report:
    """Load a checkpoint and compare it with float64, part by part.

    Args:
        path: folder of the checkpoint; None: the demo model.
        reference: folder whose config.json and tensors the float64 side reads; None: ``path``.
        load_options: of :meth:`LLM.from_pretrained`.

    The other arguments are those of :func:`verify_loaded`.

    Raises:
        Error: what loading and :func:`verify_loaded` raise.
    """
    folder = check_folder(path, DEMO_FOLDER)
    other = folder if reference is None else check_folder(reference, DEMO_FOLDER)
    with LLM.from_pretrained(folder, **load_options) as llm:
        report = verify_loaded(
            llm,
            other,
            quantization=load_options.get("quantization"),
            tokens=tokens,
            limits=limits,
            progress=progress,
        )
    return replace(report, model=folder.resolve().name)


def verify_loaded(
    llm: LLM,
    reference: Path,
    *,
    quantization: str | None = None,
    tokens: int = 64,
    limits: Mapping[str, float] | None = None,
    progress: Progress = lambda stages, _: stages,
) -> Report:
    """Compare a loaded model with float64; nobody else may use it meanwhile.

    Args:
        reference: folder whose config.json and tensors the float64 side reads.
        quantization: how the model's weights were quantised while loading.
        tokens: of the longest prompt, 1..4096.
        limits: fields of :class:`Limits` that are not to be those of the dtype and quantisation.
        progress: wraps the stages as they come; also told how many there will be.

    Raises:
        ArgumentError, TypeError: an argument is out of range or of the wrong type.
        ConfigError, FormatError, WeightError: the reference cannot be read, or is a model of
            another shape.
    """
    check_integer("tokens", tokens, 1, 4096)
    bits = _weight_bits(quantization)
    bounds = Bounds(llm.dtype, bits)
    chosen = replace(Limits.default(llm.dtype, is_quantized=bits is not None), **(limits or {}))
    weights = StoredWeights(
        reference,
        round_matrices=llm.weight_dtype == "bfloat16",
        round_vectors=llm.dtype == "bfloat16",
    )
    _check_shapes(llm, weights.architecture)
    prompts = make_prompts(llm.tokenizer, llm.config.vocab_size, llm.max_model_len, tokens)
    report = Report(
        model="",
        reference=reference.resolve().name,
        device=llm.device,
        dtype=llm.dtype,
        quantization=quantization,
        cpu_tier=_core.cpu_tier(),
        prompt_lengths=tuple(len(ids) for ids in prompts),
        limits=chosen,
    )
    # The engine's own way from ids to logits, beside the trace's.
    logits = np.concatenate(llm.forward([ids.tolist() for ids in prompts]))
    trace = EngineTrace(llm.model, llm.config, prompts, device=llm.device, dtype=llm.dtype)
    comparison = _Comparison(weights, trace, bounds, chosen, prompts)
    for stage in progress(comparison.stages(), weights.architecture.num_layers + 2):
        report.stages.append(stage)
    judged = LogitsResult.of(logits.astype(np.float64), comparison.logits, chosen.near_tie)
    return replace(report, logits=judged)


def _weight_bits(quantization: str | None) -> int | None:
    if quantization is None:
        return None
    if quantization not in WEIGHT_BITS:
        known = ", ".join(WEIGHT_BITS)
        raise ArgumentError(
            f"verify: no bounds for quantization {quoted(quantization)}, only for {known}"
        )
    return WEIGHT_BITS[quantization]


def _check_shapes(llm: LLM, reference: Architecture) -> None:
    config = llm.config
    pairs = {
        "vocab_size": (config.vocab_size, reference.vocab_size),
        "hidden_size": (config.hidden_size, reference.hidden_size),
        "intermediate_size": (config.intermediate_size, reference.intermediate_size),
        "num_hidden_layers": (config.num_hidden_layers, reference.num_layers),
        "num_attention_heads": (config.num_attention_heads, reference.num_heads),
        "num_key_value_heads": (config.num_key_value_heads, reference.num_kv_heads),
        "head_dim": (config.head_dim, reference.head_dim),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"verify: {key} is {ours} in the model and {theirs} in the reference; give the "
                "folder of the same model"
            )


class _Comparison:
    """Walks through the model with the engine's trace on one side, the formulas on the other."""

    def __init__(
        self,
        weights: StoredWeights,
        trace: EngineTrace,
        bounds: Bounds,
        limits: Limits,
        prompts: list[npt.NDArray[np.int64]],
    ) -> None:
        self.logits: Array = np.zeros((0, 0))  # float64's own, when all stages have run
        self._weights = weights
        self._trace = trace
        self._bounds = bounds
        self._scale = limits.bound_scale
        self._shape = weights.architecture
        self._ids = np.concatenate(prompts)
        ends = np.cumsum([len(ids) for ids in prompts])
        self._sequences = [slice(e - len(i), e) for e, i in zip(ends, prompts, strict=True)]
        positions = np.concatenate([np.arange(len(ids)) for ids in prompts])
        self._angles = formulas.rope_angles(positions, self._shape.head_dim, self._shape.theta)
        self._signs = np.random.default_rng(7)

    def stages(self) -> Iterator[StageResult]:
        stage, hidden = self._embedding()
        yield stage
        for index, trace in enumerate(self._trace.layers()):
            stage, hidden = self._layer(index, trace, hidden)
            yield stage
        yield self._head(hidden)

    def _judge(self, name: str, actual: Array, expected: Expected) -> PartResult:
        return PartResult.of(name, actual, expected, self._scale)

    # --------------------------------------------------------------------------- the three stages

    def _embedding(self) -> tuple[StageResult, Array]:
        """All rows of the table: a lookup is a copy."""
        name = "model.embed_tokens.weight"
        hidden = np.zeros((len(self._ids), self._shape.hidden_size))
        looked_up = hidden.copy()
        results = []
        ours = self._trace.embedding_rows(CHUNK_ROWS)
        for (first, rows), (_, got) in zip(self._weights.table_rows(name), ours, strict=True):
            results.append(self._judge("table", got, self._bounds.table(rows)))
            here = (self._ids >= first) & (self._ids < first + len(rows))
            hidden[here] = rows[self._ids[here] - first]
            looked_up[here] = got[self._ids[here] - first]
        return _stage("embedding", looked_up, hidden, (_worst(results),)), hidden

    def _layer(self, index: int, trace: LayerTrace, hidden: Array) -> tuple[StageResult, Array]:
        name = f"model.layers.{index}"
        layer = self._trace.model.model.layers[index]
        parts: list[PartResult] = []
        norm = self._weights.vector(f"{name}.input_layernorm.weight")
        if trace.hidden is not None:
            entered = self._bounds.sum(trace.hidden, trace.residual)
            parts.append(self._judge("residual", trace.entered, entered))
        parts += self._norm(
            "input_layernorm", layer.input_layernorm, norm, trace.entered, trace.normed
        )
        normed = formulas.rms_norm(hidden, norm, self._shape.eps)
        middle = hidden + self._attention(name, layer.self_attn, trace, normed, parts)
        entered = self._bounds.sum(trace.projected, trace.entered)
        parts.append(self._judge("residual after attention", trace.middle, entered))
        norm = self._weights.vector(f"{name}.post_attention_layernorm.weight")
        parts += self._norm(
            "post_attention_layernorm", layer.post_attention_layernorm, norm, trace.middle,
            trace.middle_normed,
        )  # fmt: skip
        normed = formulas.rms_norm(middle, norm, self._shape.eps)
        hidden = middle + self._mlp(name, layer.mlp, trace, normed, parts)
        return _stage(f"layer {index}", trace.middle + trace.down, hidden, tuple(parts)), hidden

    def _attention(
        self, name: str, attention: Any, trace: LayerTrace, x: Array, parts: list[PartResult]
    ) -> Array:
        """Judges the engine's attention; returns float64's own for ``x``."""
        projections = [self._weights.linear(f"{name}.self_attn.{m}_proj") for m in "qkv"]
        self._weights_of(attention.qkv_proj, dict(zip("qkv", projections, strict=True)), parts)
        own = []
        for letter, matrix, actual in zip(
            "qkv", projections, (trace.query, trace.key, trace.value), strict=True
        ):
            heads = (len(x), -1, self._shape.head_dim)
            expected = self._bounds.linear(trace.normed, matrix)
            expected = Expected(expected.value.reshape(heads), expected.bound.reshape(heads))
            projected = formulas.linear(x, matrix.weight, matrix.bias).reshape(heads)
            if letter != "v":
                expected = self._bounds.rotated(expected, self._angles)
                projected = formulas.rotate(projected, self._angles)
            own.append(projected)
            rope = "" if letter == "v" else " and RoPE"
            parts.append(self._judge(f"{letter}_proj{rope}", actual, expected))
        query, key, value = own
        mixed = np.empty_like(query)
        results = []
        for rows in self._sequences:
            expected = self._bounds.attention(trace.query[rows], trace.key[rows], trace.value[rows])
            results.append(self._judge("attention", trace.attention[rows], expected))
            p, _ = formulas.probabilities(query[rows], key[rows])
            mixed[rows] = formulas.attend(p, value[rows])
        parts.append(_worst(results))
        matrix = self._weights.linear(f"{name}.self_attn.o_proj")
        self._weights_of(attention.o_proj, {"o": matrix}, parts)
        given = trace.attention.reshape(len(x), -1)
        parts.append(self._judge("o_proj", trace.projected, self._bounds.linear(given, matrix)))
        return formulas.linear(mixed.reshape(len(x), -1), matrix.weight, matrix.bias)

    def _mlp(
        self, name: str, mlp: Any, trace: LayerTrace, x: Array, parts: list[PartResult]
    ) -> Array:
        gate = self._weights.linear(f"{name}.mlp.gate_proj")
        up = self._weights.linear(f"{name}.mlp.up_proj")
        self._weights_of(mlp.gate_up_proj, {"gate": gate, "up": up}, parts)
        expected = self._bounds.gated(trace.middle_normed, gate, up)
        parts.append(self._judge("gate_proj and up_proj", trace.gated, expected))
        gated = formulas.silu(formulas.linear(x, gate.weight, gate.bias))
        gated *= formulas.linear(x, up.weight, up.bias)
        down = self._weights.linear(f"{name}.mlp.down_proj")
        self._weights_of(mlp.down_proj, {"down": down}, parts)
        parts.append(self._judge("down_proj", trace.down, self._bounds.linear(trace.gated, down)))
        return formulas.linear(gated, down.weight, down.bias)

    def _head(self, hidden: Array) -> StageResult:
        left, residual, entered, normed = self._trace.final()
        norm = self._weights.vector("model.norm.weight")
        parts = [self._judge("residual", entered, self._bounds.sum(left, residual))]
        parts += self._norm("norm", self._trace.model.model.norm, norm, entered, normed)
        x = formulas.rms_norm(hidden, norm, self._shape.eps)
        logits = self._trace.logits(normed)
        signs = self._signs.choice((-1.0, 1.0), (2, self._shape.hidden_size))
        of_signs = self._trace.logits(signs)
        self.logits = np.empty_like(logits)
        name = "lm_head.weight" if self._weights.has_head else "model.embed_tokens.weight"
        results = []
        for first, rows in self._weights.table_rows(name):
            columns = slice(first, first + len(rows))
            matrix = Matrix(rows, None)
            for part, given, actual in (
                ("head", normed, logits),
                ("head weights", signs, of_signs),
            ):
                expected = self._bounds.linear(given, matrix, dtype="float32")
                results.append(self._judge(part, actual[:, columns], expected))
            self.logits[:, columns] = formulas.linear(x, rows)
        for part in ("head", "head weights"):
            parts.append(_worst([result for result in results if result.name == part]))
        return _stage("head", logits, self.logits, tuple(parts))

    # ------------------------------------------------------------------------------------- probes

    def _norm(
        self, name: str, norm: Any, weight: Array, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        """A norm on its own input, and on one so small that eps counts."""
        eps = self._shape.eps
        yield self._judge(name, actual, self._bounds.rms_norm(x, weight, eps))
        # Mean squares from a hundredth of eps to eps: there a wrong eps is as large as the result.
        scale = np.sqrt(eps * np.array([[0.01], [0.1], [1.0]]))
        small = self._signs.standard_normal((3, len(weight))) * scale
        rounded = self._trace.tensor(small).numpy().astype(np.float64)
        expected = self._bounds.rms_norm(rounded, weight, eps)
        yield self._judge(f"{name} near eps", self._trace.norm(norm, rounded), expected)

    def _weights_of(self, layer: Any, matrices: dict[str, Matrix], parts: list[PartResult]) -> None:
        """Rows of ones and minus ones weigh every weight alike; sums are not rounded to 16 bits."""
        width = next(iter(matrices.values())).weight.shape[1]
        signs = self._signs.choice((-1.0, 1.0), (2, width))
        actual = self._trace.linear(layer, signs)
        first = 0
        for letter, matrix in matrices.items():
            rows = slice(first, first + len(matrix.weight))
            first = rows.stop
            expected = self._bounds.linear(signs, matrix, dtype="float32")
            parts.append(self._judge(f"{letter}_proj weights", actual[:, rows], expected))


def _worst(results: list[PartResult]) -> PartResult:
    return max(results, key=lambda part: part.share)


def _stage(name: str, actual: Array, expected: Array, parts: tuple[PartResult, ...]) -> StageResult:
    difference = actual - expected
    norm = float(np.linalg.norm(expected))
    relative = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    return StageResult(name, float(np.abs(difference).max()), relative, parts)
