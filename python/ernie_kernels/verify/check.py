"""Brings the engine and the formulas together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels import _core
from ernie_kernels.errors import ConfigError, UnsupportedError
from ernie_kernels.llm import DEMO_FOLDER, LLM
from ernie_kernels.load_arguments import check_folder, check_integer, check_quantization
from ernie_kernels.models.quantization import W8A8, WINT4, WINT8
from ernie_kernels.verify.bounds import Bounds
from ernie_kernels.verify.comparison import Comparison
from ernie_kernels.verify.engine_trace import EngineTrace
from ernie_kernels.verify.prompts import make_prompts
from ernie_kernels.verify.report import Limits, LogitsResult, Report, StageResult
from ernie_kernels.verify.stored_weights import Architecture, StoredWeights

Bits = tuple[int | None, int | None]
Progress = Callable[[Iterator[StageResult], int], Iterator[StageResult]]
# Of weights and of activations.
QUANTIZED_BITS: dict[str | None, Bits] = {
    None: (None, None),
    WINT8: (8, None),
    W8A8: (8, 8),
    WINT4: (4, None),
}


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
    quantization: str | Mapping[str, str | None] | None = None,
    tokens: int = 64,
    limits: Mapping[str, float] | None = None,
    progress: Progress = lambda stages, _: stages,
) -> Report:
    """Compare a loaded model with float64; nobody else may use it meanwhile.

    Args:
        reference: folder whose config.json and tensors the float64 side reads.
        quantization: how the model's weights were quantised while loading, as
            :meth:`LLM.from_pretrained` takes it.
        tokens: of the longest prompt, 1..1024.
        limits: fields of :class:`Limits` that are not to be those of the dtype and quantisation.
        progress: wraps the stages as they come; also told how many there will be.

    Raises:
        ArgumentError, TypeError: an argument is out of range or of the wrong type.
        ConfigError, FormatError, WeightError: the reference cannot be read, or is a model of
            another shape.
        UnsupportedError: a vision-language model.
    """
    check_integer("tokens", tokens, 1, 1024)
    if llm.config.vision is not None:
        raise UnsupportedError(
            "verify: vision-language models are not in this version; give a model of text alone"
        )
    kinds = check_quantization(quantization, llm.device)
    bounds, expert_bounds = (
        Bounds(llm.dtype, *QUANTIZED_BITS[kind]) for kind in (kinds.dense, kinds.experts)
    )
    default = Limits.default(
        llm.dtype, is_quantized=kinds.name is not None, has_4_bits=kinds.dense == WINT4
    )
    chosen = replace(default, **(limits or {}))
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
        quantization=kinds.name,
        cpu_tier=_core.cpu_tier(),
        prompt_lengths=tuple(len(ids) for ids in prompts),
        limits=chosen,
    )
    # The engine's own way from ids to logits, beside the trace's.
    logits = np.concatenate(llm.forward([ids.tolist() for ids in prompts]))
    trace = EngineTrace(llm.model, llm.config, prompts, device=llm.device, dtype=llm.dtype)
    comparison = Comparison(weights, trace, bounds, expert_bounds, chosen.bound_scale, prompts)
    for stage in progress(comparison.stages(), weights.architecture.num_layers + 2):
        report.stages.append(stage)
    exact, twin = comparison.logits, comparison.twin_logits
    judged = LogitsResult.of(logits.astype(np.float64), exact, chosen.near_tie)
    rounding = LogitsResult.of(twin, exact, chosen.near_tie) if len(twin) else None
    return replace(report, logits=judged, rounding=rounding)


def _check_shapes(llm: LLM, reference: Architecture) -> None:
    config, experts = llm.config, reference.experts
    layers = [index for index, plan in enumerate(config.layers) if plan.mlp == "moe"]
    pairs: dict[str, tuple[Any, Any]] = {
        "vocab_size": (config.vocab_size, reference.vocab_size),
        "hidden_size": (config.hidden_size, reference.hidden_size),
        "intermediate_size": (config.intermediate_size, reference.intermediate_size),
        "num_hidden_layers": (config.num_hidden_layers, reference.num_layers),
        "num_attention_heads": (config.num_attention_heads, reference.num_heads),
        "num_key_value_heads": (config.num_key_value_heads, reference.num_kv_heads),
        "head_dim": (config.head_dim, reference.head_dim),
        "moe_num_experts": (config.num_experts, experts.count),
        "moe_k": (config.top_k, experts.top_k),
        "moe_intermediate_size": (config.moe_intermediate_size, experts.width),
        "moe_num_shared_experts": (config.num_shared_experts, experts.num_shared),
        "layers with experts": (layers, [i for i, has in enumerate(experts.layers) if has]),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"verify: {key} is {ours} in the model and {theirs} in the reference; give the "
                "folder of the same model"
            )
