"""Kernels and a model runner for Baidu's ERNIE-4.5 family."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ernie_kernels import ops
from ernie_kernels._core import (
    Tensor,
    cpu_tier,
    device_count,
    empty,
    from_numpy,
    has_cuda,
    num_threads,
    set_num_threads,
)
from ernie_kernels.errors import (
    ArgumentError,
    CapacityError,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    InputError,
    InternalError,
    LimitError,
    NumericError,
    OutOfMemoryError,
    UnsupportedError,
    WeightError,
)

if TYPE_CHECKING:
    from ernie_kernels.llm import LLM
    from ernie_kernels.outputs import CompletionOutput, GenerationChunk, Logprob, RequestOutput
    from ernie_kernels.runner.sampling import SamplingParams

__version__ = "0.1.0"

_LAZY = {
    "LLM": "ernie_kernels.llm",
    "SamplingParams": "ernie_kernels.runner.sampling",
    "CompletionOutput": "ernie_kernels.outputs",
    "GenerationChunk": "ernie_kernels.outputs",
    "Logprob": "ernie_kernels.outputs",
    "RequestOutput": "ernie_kernels.outputs",
}

__all__ = [
    "LLM",
    "ArgumentError",
    "CapacityError",
    "CompletionOutput",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "GenerationChunk",
    "InputError",
    "InternalError",
    "LimitError",
    "Logprob",
    "NumericError",
    "OutOfMemoryError",
    "RequestOutput",
    "SamplingParams",
    "Tensor",
    "UnsupportedError",
    "WeightError",
    "__version__",
    "cpu_tier",
    "device_count",
    "empty",
    "from_numpy",
    "has_cuda",
    "num_threads",
    "ops",
    "set_num_threads",
]


if not TYPE_CHECKING:  # to a type checker a misspelt name stays an error

    def __getattr__(name: str) -> Any:
        # Loaded on first use: tokenizers and templates take longer to import than the ops.
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
