"""Normalisation ops. C++ contract: csrc/ops/norm.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-5, out: Tensor | None = None) -> Tensor:
    """Root-mean-square normalisation over the last dimension.

    ``out[t, h] = weight[h] * round(x[t, h] / sqrt(mean_h(x[t, h]**2) + eps))``: float32 inside,
    rounded to ``x.dtype`` before the weight multiplies and again after it.

    Args:
        x: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        weight: ``[hidden_size]``, dtype of ``x``.
        eps: added to the mean square; > 0. ERNIE-4.5 configs call it ``rms_norm_eps`` (1e-5).
        out: where to write, same shape and dtype as ``x``; may be ``x``. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; the rounding before the weight is that
    of ERNIE-4.5's reference implementation.
    """
    if out is None:
        out = _core.empty_like(x, "rms_norm", "x")
    _core.rms_norm(out, x, weight, eps)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float = 1e-5, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream, then normalise it: one pass over memory.

    ``residual = round(residual + x)``, in place; ``out = rms_norm(residual, weight)``.

    Args:
        x: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        residual: same shape and dtype as ``x``; read and written.
        weight: ``[hidden_size]``, dtype of ``x``.
        eps: added to the mean square; > 0.
        out: where to write, same shape and dtype as ``x``; may be ``x``. Allocated when omitted.

    Returns:
        ``(out, residual)``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: as ``rms_norm``; pre-norm residual layers as in the ERNIE-4.5 decoder.
    """
    if out is None:
        out = _core.empty_like(x, "add_rms_norm", "x")
    _core.add_rms_norm(out, residual, x, weight, eps)
    return out, residual


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6, out: Tensor | None = None
) -> Tensor:
    """Normalisation by mean and variance over the last dimension.

    ``out[t, h] = (x[t, h] - mean) / sqrt(variance + eps) * weight[h] + bias[h]`` with
    ``mean = mean_h(x[t, h])`` and ``variance = mean_h((x[t, h] - mean)**2)``, in two passes:
    float32 inside, rounded once to ``x.dtype``.

    Args:
        x: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        weight: ``[hidden_size]``, dtype of ``x``.
        bias: ``[hidden_size]``, dtype of ``x``.
        eps: added to the variance; > 0. 1e-6 in ERNIE-4.5's vision tower and resampler.
        out: where to write, same shape and dtype as ``x``; may be ``x``. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    if out is None:
        out = _core.empty_like(x, "layer_norm", "x")
    _core.layer_norm(out, x, weight, bias, eps)
    return out


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream, then normalise it: one pass over memory.

    ``residual = round(residual + x)``, in place; ``out = layer_norm(residual, weight, bias)``.

    Args:
        x: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        residual: same shape and dtype as ``x``; read and written.
        weight: ``[hidden_size]``, dtype of ``x``.
        bias: ``[hidden_size]``, dtype of ``x``.
        eps: added to the variance; > 0.
        out: where to write, same shape and dtype as ``x``; may be ``x``. Allocated when omitted.

    Returns:
        ``(out, residual)``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: as :func:`layer_norm`; pre-norm residual layers as in ERNIE-4.5's vision tower.
    """
    if out is None:
        out = _core.empty_like(x, "add_layer_norm", "x")
    _core.add_layer_norm(out, residual, x, weight, bias, eps)
    return out, residual
