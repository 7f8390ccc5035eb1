"""Kernels and a model runner for Baidu's ERNIE-4.5 family."""

from __future__ import annotations

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

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CapacityError",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "InputError",
    "InternalError",
    "LimitError",
    "NumericError",
    "OutOfMemoryError",
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
