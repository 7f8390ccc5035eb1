"""Activations. C++ contract: csrc/ops/activation.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor


def silu_and_mul(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The gate of a SwiGLU MLP: ``out[t, i] = silu(x[t, i]) * x[t, intermediate_size + i]``.

    ``silu(v) = v / (1 + exp(-v))``; computed in float32, rounded once to ``x.dtype``.

    Args:
        x: ``[num_tokens, 2 * intermediate_size]``, float32 or bfloat16, last stride 1: the gate
            columns, then the up columns.
        out: where to write, ``[num_tokens, intermediate_size]``, dtype of ``x``, last stride 1;
            memory apart from ``x``. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Shazeer 2020, arXiv:2002.05202; column order as in ERNIE-4.5.
    """
    if out is None:
        out = _core.silu_and_mul_out(x)
    _core.silu_and_mul(out, x)
    return out


def gelu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The exact GELU: ``out[t, i] = x[t, i] * (1 + erf(x[t, i] / sqrt(2))) / 2``.

    Computed in float32, rounded once to ``x.dtype``; far below zero float32 values keep a relative
    precision of some 5e-6. As the formula, it gives NaN for minus infinity.

    Args:
        x: ``[num_tokens, size]``, float32 or bfloat16, last stride 1.
        out: where to write, same shape and dtype as ``x``, last stride 1; may be ``x``. Allocated
            when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    if out is None:
        out = _core.empty_like(x, "gelu", "x")
    _core.gelu(out, x)
    return out


def quick_gelu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``out[t, i] = x[t, i] * sigmoid(1.702 * x[t, i])``, ``sigmoid(v) = 1 / (1 + exp(-v))``.

    All else is as of :func:`gelu`: arguments, rounding and precision, NaN for minus infinity.

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2: its cheaper approximation.
    """
    if out is None:
        out = _core.empty_like(x, "quick_gelu", "x")
    _core.quick_gelu(out, x)
    return out
