"""Checks of what :meth:`LLM.from_pretrained` is given."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie_kernels import _core
from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ArgumentError, ConfigError, DeviceError, UnsupportedError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.media_positions import (
    BAIDU,
    BANK_RULES,
    BANKS_BY_ROLE,
    POSITION_RULES,
)
from ernie_kernels.models.mtp import HIDDEN_STATES, SpeculativeConfig
from ernie_kernels.models.quantization import (
    DENSE_KEY,
    EXPERTS_KEY,
    METHOD_KEY,
    MIXED,
    QUANTIZATIONS,
    W8A8,
    WINT4,
    WINT8,
    Quantization,
)
from ernie_kernels.vision.limits import VisionLimits

DTYPES = ("float32", "bfloat16")
KV_CACHE_DTYPES = ("bfloat16", "float32", "int8", "fp8", "fp8_e4m3", "int4")
# Of the names that mean something, those that this version does not know how to do.
OTHER_QUANTIZATIONS = ("w4a8", "ccq")
MAX_SPECULATIVE_TOKENS = 8
MAX_NUM_SEQS = 1024
SPECULATIVE_KEYS = ("method", "num_speculative_tokens", "hidden_state")


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """How prompts with images and videos are made."""

    position_rule: str = BAIDU
    bank_rule: str = BANKS_BY_ROLE
    settings: Mapping[str, Any] = field(default_factory=dict)  # of VisionSettings


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Checked arguments of :meth:`LLM.from_pretrained`, as its docstring explains them."""

    device: str  # "cpu" or "cuda:N"
    dtype: str
    quantization: Quantization
    kv_cache_dtype: str
    max_model_len: int | None
    max_num_seqs: int
    kv_cache_memory: int | None  # bytes
    speculative: SpeculativeConfig | None
    media: MediaOptions
    media_limits: VisionLimits

    @property
    def num_drafts(self) -> int:
        """Tokens guessed ahead in a step."""
        return 0 if self.speculative is None else self.speculative.num_speculative_tokens


def check_load_options(
    *,
    device: Any,
    dtype: Any,
    quantization: Any,
    kv_cache_dtype: Any,
    batch_invariant: Any,
    max_model_len: Any,
    max_num_seqs: Any,
    kv_cache_memory: Any,
    num_threads: Any,
    speculative_config: Any,
    mm_processor_kwargs: Any,
    allowed_local_media_path: Any,
) -> LoadOptions:
    check_one_of("dtype", dtype, ("auto", *DTYPES))
    check_one_of("kv_cache_dtype", kv_cache_dtype, ("auto", *KV_CACHE_DTYPES))
    resolved = check_device(device)
    kinds = check_quantization(quantization, resolved)
    check_batch_invariant(batch_invariant, resolved)
    check_counts(max_num_seqs, max_model_len, kv_cache_memory, num_threads)
    return LoadOptions(
        resolved,
        dtype,
        kinds,
        kv_cache_dtype,
        max_model_len,
        max_num_seqs,
        kv_cache_memory,
        check_speculative_config(speculative_config),
        check_mm_processor_kwargs(mm_processor_kwargs),
        VisionLimits(allowed_local_media_path=allowed_local_media_path),
    )


def check_batch_invariant(asked: Any, device: str) -> None:
    if not isinstance(asked, bool):
        check_one_of("batch_invariant", asked, ("auto",))
    if asked is True and device != "cpu":
        raise UnsupportedError(
            f"batch_invariant: True is not in this version for {device}; on the CPU it always holds"
        )


def check_folder(path: str | os.PathLike[str] | None, default: Path) -> Path:
    if path is None:
        return default
    check_one_of_type("path", path, (str, os.PathLike))
    folder = Path(path)
    try:
        is_folder = folder.is_dir()
    except ValueError:  # a null character
        is_folder = False
    if not is_folder:
        raise ConfigError(
            f"path: {quoted(folder.name or str(path))} is not a folder; pass the one that the "
            "checkpoint's config.json is in"
        )
    return folder


def check_device(device: Any) -> str:
    check_one_of_type("device", device, str)
    count = _core.device_count()
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return device
    name, colon, number = device.partition(":")
    is_number = number.isascii() and number.isdigit() and len(number) <= 3
    if name != "cuda" or bool(colon) != is_number:
        raise ArgumentError(f"device: expected auto, cpu, cuda or cuda:N, got {quoted(device)}")
    index = int(number or 0)
    if count == 0 and _core.has_cuda():
        _core.empty([0], "uint8", f"cuda:{index}")  # tells what is wrong with driver or GPU
    elif index >= count:
        build = "" if _core.has_cuda() else " and this build has no CUDA backend"
        raise DeviceError(f"device: {device} needed, {count} GPUs found{build}; pass device='cpu'")
    return f"cuda:{index}"


def check_counts(
    max_num_seqs: Any, max_model_len: Any, kv_cache_memory: Any, num_threads: Any
) -> None:
    """Beyond these limits a product of two could pass what a machine can address."""
    check_integer("max_num_seqs", max_num_seqs, 1, MAX_NUM_SEQS)
    for name, value, most in (
        ("max_model_len", max_model_len, 1 << 21),
        ("kv_cache_memory", kv_cache_memory, 1 << 46),
        ("num_threads", num_threads, 1024),
    ):
        if value is not None:
            check_integer(name, value, 1, most)


def check_quantization(asked: Any, device: str) -> Quantization:
    """A word for the whole model, or FastDeploy's mapping of a word to each kind of matrix."""
    if isinstance(asked, Mapping):
        _check_mixed(asked)
    elif asked is not None:
        check_one_of_type("quantization", asked, (str, Mapping))
        _check_kind("quantization", asked)
    quantization = Quantization.of(asked)
    if device == "cpu":
        return quantization
    if quantization.rounds_activations:
        raise UnsupportedError(
            f"quantization: {W8A8} is not in this version for {device}; pass wint8 or device='cpu'"
        )
    return quantization


def _check_mixed(asked: Mapping[Any, Any]) -> None:
    for key, value in asked.items():
        check_one_of("quantization: key", key, (DENSE_KEY, EXPERTS_KEY, METHOD_KEY))
        if key == METHOD_KEY:
            check_one_of(f"quantization: {key}", value, (MIXED,))
        elif value is not None:
            _check_kind(f"quantization: {key}", value)
    if DENSE_KEY not in asked and EXPERTS_KEY not in asked:
        raise ArgumentError(
            f"quantization: {DENSE_KEY} and {EXPERTS_KEY} are missing; pass "
            f'{{"{DENSE_KEY}": "{WINT4}", "{EXPERTS_KEY}": "{WINT4}"}}'
        )


def _check_kind(name: str, value: Any) -> None:
    check_one_of_type(name, value, str)
    if value in OTHER_QUANTIZATIONS:
        raise UnsupportedError(
            f"{name}: {value} is not in this version; pass {', '.join(QUANTIZATIONS)} or None"
        )
    check_one_of(name, value, QUANTIZATIONS)


def check_quantization_of(config: ModelConfig, quantization: Quantization) -> None:
    """Raises ArgumentError where a model has nothing that would be quantised so."""
    if any(plan.mlp == "moe" for plan in config.layers):
        return
    if (quantization.dense, quantization.experts) == (WINT8, WINT4):
        raise ArgumentError(
            f"quantization: {WINT4} rounds experts and this model has none; pass {WINT8}, or "
            f'{{"{DENSE_KEY}": "{WINT4}"}} for 4 bits everywhere'
        )
    if quantization.experts not in (None, quantization.dense):
        raise ArgumentError(
            f"quantization: {EXPERTS_KEY} rounds experts and this model has none; pass "
            f"{DENSE_KEY} alone"
        )


def check_speculative_config(values: Any) -> SpeculativeConfig | None:
    where = "speculative_config"
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise TypeError(f"{where}: expected a dict, got {type(values).__name__}")
    for key in values:
        check_one_of(f"{where}: key", key, SPECULATIVE_KEYS)
    for key in ("method", "num_speculative_tokens"):
        if key not in values:
            raise ArgumentError(
                f'{where}: {key} is missing; pass {{"method": "mtp", "num_speculative_tokens": 1}}'
            )
    check_one_of(f"{where}: method", values["method"], ("mtp",))
    checked = SpeculativeConfig(**{key: values[key] for key in values if key != "method"})
    check_one_of(f"{where}: hidden_state", checked.hidden_state, HIDDEN_STATES)
    count = checked.num_speculative_tokens
    check_integer(f"{where}: num_speculative_tokens", count, 1, MAX_SPECULATIVE_TOKENS)
    return checked


def dtypes_of(stored: str, dtype: str, kv_cache_dtype: str) -> tuple[str, str]:
    """Of activations, and of matrices that are not quantised, for a checkpoint stored as ``stored``.

    Raises UnsupportedError for a cache of another dtype than the activations'.
    """
    is_bfloat16 = stored == "bfloat16"
    if dtype == "auto":
        # float16 has no kernels; float32 holds its values exactly.
        dtype = "bfloat16" if is_bfloat16 else "float32"
    if kv_cache_dtype not in ("auto", dtype):
        raise UnsupportedError(
            f"kv_cache_dtype: {kv_cache_dtype} is not in this version; with dtype={dtype} the cache "
            f"is {dtype}"
        )
    return dtype, "bfloat16" if is_bfloat16 else dtype


def check_speculative_of(config: ModelConfig, speculative: SpeculativeConfig | None) -> None:
    """Raises UnsupportedError for what cannot guess ahead."""
    if config.vision is not None and speculative is not None:
        raise UnsupportedError(
            "speculative_config: not in this version for a vision-language model; leave it out"
        )


def check_mm_processor_kwargs(options: Any) -> MediaOptions:
    """What ``mm_processor_kwargs`` says.

    Raises:
        TypeError: no mapping of names.
        ArgumentError: a rule that there is not.
    """
    where = "mm_processor_kwargs"
    if options is None:
        return MediaOptions()
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(f"{where}: expected a dict of options by name")
    settings = dict(options)
    position_rule = settings.pop("position_rule", BAIDU)
    bank_rule = settings.pop("bank_rule", BANKS_BY_ROLE)
    check_one_of(f"{where}: position_rule", position_rule, POSITION_RULES)
    check_one_of(f"{where}: bank_rule", bank_rule, BANK_RULES)
    return MediaOptions(position_rule, bank_rule, settings)


def check_one_of_type(name: str, value: Any, types: type | tuple[type, ...]) -> None:
    if not isinstance(value, types):
        names = types if isinstance(types, tuple) else (types,)
        expected = " or ".join(each.__name__ for each in names)
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    check_one_of_type(name, value, str)
    if value not in choices:
        raise ArgumentError(f"{name}: expected one of {', '.join(choices)}, got {quoted(value)}")


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ArgumentError(f"{name}: expected {low}..{high}, got {quoted(number)}")
