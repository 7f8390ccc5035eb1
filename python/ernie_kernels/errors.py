"""Every exception that leaves the public API.

Each class is also the closest built-in class, so ``except ValueError`` works as expected. Messages
say what is wrong, where, what was expected, what came, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_kernels.outputs import RequestOutput


class Error(Exception):
    """Base of all errors of this package."""


class FormatError(Error, ValueError):
    """A file is not what its format says: truncated, malformed, contradictory."""


class ConfigError(Error, ValueError):
    """A configuration, tokenizer or chat template file cannot be used."""


class WeightError(Error, ValueError):
    """A checkpoint's tensors do not fit its configuration."""


class InputError(Error, ValueError):
    """A prompt, token id, message or sampling parameter is wrong."""


class LimitError(InputError):
    """An input is well-formed but larger than a limit."""


class ArgumentError(Error, ValueError):
    """An argument of an op or constructor has the wrong shape, dtype, device, layout or range."""


class UnsupportedError(Error, NotImplementedError):
    """The arguments are right, but this version has no kernel for them."""


class CapacityError(Error, RuntimeError):
    """A resource is exhausted for now (no free cache block); a later try may succeed."""


class DeviceError(Error, RuntimeError):
    """No GPU that this build can use, or the CUDA runtime or driver reported a failure."""


class NumericError(Error, ArithmeticError):
    """A result is not finite (NaN or infinite logits); the request that caused it has ended.

    Attributes:
        outputs: of all requests of the call, complete for those that were not affected.
    """

    def __init__(self, message: str, outputs: list[RequestOutput] | None = None) -> None:
        super().__init__(message)
        self.outputs = outputs or []


class OutOfMemoryError(Error, MemoryError):
    """Host or device memory could not be allocated."""


class InternalError(Error, RuntimeError):
    """An invariant inside this package is broken: a bug of ours, please report it."""
