"""Brings the engine and the formulas together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels import _core
from ernie_kernels.llm import DEMO_FOLDER, LLM
from ernie_kernels.load_arguments import (
    check_folder,
    check_integer,
    check_mm_processor_kwargs,
    check_quantization,
)
from ernie_kernels.models.quantization import W8A8, WINT4, WINT8
from ernie_kernels.verify.bounds import Bounds
from ernie_kernels.verify.comparison import Comparison
from ernie_kernels.verify.judge import Judge
from ernie_kernels.verify.media_requests import MediaRequests
from ernie_kernels.verify.report import Limits, LogitsResult, Report, StageResult
from ernie_kernels.verify.same_shape import check_shapes
from ernie_kernels.verify.stored_weights import StoredWeights

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
        reference: folder that the float64 side reads; None: ``path``.
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
            mm_processor_kwargs=load_options.get("mm_processor_kwargs"),
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
    mm_processor_kwargs: Mapping[str, Any] | None = None,
    tokens: int = 64,
    limits: Mapping[str, float] | None = None,
    progress: Progress = lambda stages, _: stages,
) -> Report:
    """Compare a loaded model with float64; nobody else may use it meanwhile.

    A vision-language model also gets a prompt with an image and a video.

    Args:
        reference: folder whose config.json, tensors and preprocessor files the float64 side reads.
        quantization, mm_processor_kwargs: what :meth:`LLM.from_pretrained` was given.
        tokens: of the longest prompt of text, 1..1024.
        limits: fields of :class:`Limits` that are not to be those of the dtype and quantisation.
        progress: wraps the stages as they come; also told how many there will be.

    Raises:
        ArgumentError, TypeError: an argument is out of range or of the wrong type.
        ConfigError, FormatError, WeightError: the reference cannot be read, or is a model of
            another shape.
        LimitError: the prompt with an image and a video is longer than the model allows.
    """
    check_integer("tokens", tokens, 1, 1024)
    kinds = check_quantization(quantization, llm.device)
    options = check_mm_processor_kwargs(mm_processor_kwargs)
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
    check_shapes(llm.config, weights.architecture)
    requests = MediaRequests.make(llm, weights.architecture, reference, options, tokens)
    layout = requests.layout
    report = Report(
        model="",
        reference=reference.resolve().name,
        device=llm.device,
        dtype=llm.dtype,
        quantization=kinds.name,
        cpu_tier=_core.cpu_tier(),
        prompt_lengths=tuple(len(prompt.ids) for prompt in layout.prompts),
        limits=chosen,
        pictures=tuple(map(str, layout.pictures)),
    )
    # The engine's own way from ids to logits, beside the trace's.
    logits = np.concatenate(requests.forward(llm))
    trace = requests.trace(llm)
    vision = requests.vision(llm, weights, Judge(trace, Bounds(llm.dtype), chosen.bound_scale))
    comparison = Comparison(
        weights, trace, bounds, expert_bounds, chosen.bound_scale, layout, vision
    )
    for stage in progress(comparison.stages(), comparison.num_stages):
        report.stages.append(stage)
    exact, twin = comparison.logits, comparison.twin_logits
    judged = LogitsResult.of(logits.astype(np.float64), exact, chosen.near_tie)
    rounding = LogitsResult.of(twin, exact, chosen.near_tie) if len(twin) else None
    return replace(report, logits=judged, rounding=rounding)
