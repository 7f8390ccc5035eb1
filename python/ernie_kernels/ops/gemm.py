"""Linear layers. C++ contract: csrc/ops/gemm.h."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.ops.packed import PackedMatrix, matrix_of


@dataclass(frozen=True, slots=True)
class PackedWeight(PackedMatrix):
    """A weight in the order that the CPU's kernels read it; made by :func:`linear_pack`.

    ``tensor``: bfloat16 ``[ceil(N / 16), ceil(K / 2), 16, 2]`` or float32 ``[ceil(N / 16), K, 16]``,
    zeros beyond N and K.
    """


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    out: Tensor | None = None,
    dtype: str | None = None,
) -> Tensor:
    """``out[t, n] = activation(sum_k x[t, k] * weight[n, k] + bias[n])``.

    Summed in float32, activated in float32, rounded once. A row's result does not depend on the other rows or on the number of threads. Packed and plain
    weights give the same bits.

    Args:
        x: ``[num_tokens, in_features]``, float32 or bfloat16, last stride 1.
        weight: ``[out_features, in_features]``, contiguous, float32 (then ``x`` is too) or
            bfloat16; or a :class:`PackedWeight` (CPU only, and several times faster there).
        bias: ``[out_features]``, dtype of the weight, or None.
        activation: None, or the name of the op that is applied to the sums: ``"gelu"`` or
            ``"quick_gelu"``.
        out: where to write, ``[num_tokens, out_features]``, dtype of ``x`` or float32. Allocated
            when omitted.
        dtype: of the allocated ``out``: that of ``x`` (default) or ``"float32"``.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: on CUDA, an extent near 2**31 or beyond.

    Source: y = x Wᵀ + b.
    """
    matrix, out_features = matrix_of("linear", weight, PackedWeight, x, out)
    if out is None:
        out = _core.linear_out(x, matrix, out_features, dtype)
    _core.linear(out, x, matrix, bias, activation)
    return out


def linear_silu_and_mul(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    gate_up: Tensor | None = None,
) -> Tensor:
    """``silu_and_mul(linear(x, weight, bias))``, bit for bit: gate and up projection of an MLP.

    On the CPU the projections never leave the cache.

    Args:
        x: ``[num_tokens, in_features]``, float32 or bfloat16, last stride 1.
        weight: as of :func:`linear`, with ``2 * intermediate_size`` rows, gate first, then up.
        bias: ``[2 * intermediate_size]``, dtype of the weight, or None.
        out: where to write, ``[num_tokens, intermediate_size]``, dtype of ``x``, last stride 1.
            Allocated when omitted.
        gate_up: room for the projections on CUDA, ``[num_tokens, 2 * intermediate_size]``, dtype of
            ``x``, last stride 1. Allocated when ``out`` is omitted; the CPU needs none.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: on CUDA, an extent near 2**31 or beyond.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    matrix, out_features = matrix_of(
        "linear_silu_and_mul", weight, PackedWeight, x, out, "intermediate_size"
    )
    if out is None:
        out, room = _core.linear_silu_and_mul_out(x, matrix, out_features)
        gate_up = room if gate_up is None else gate_up
    _core.linear_silu_and_mul(out, x, matrix, bias, gate_up)
    return out


def linear_pack(weight: Tensor) -> PackedWeight:
    """Reorder a weight once for the CPU's kernels.

    Args:
        weight: ``[out_features, in_features]``, float32 or bfloat16, last stride 1, on the CPU.

    Returns:
        A :class:`PackedWeight` that owns a copy: the original can be released.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        UnsupportedError: the weight is not on the CPU.

    Source: layout of csrc/ops/gemm.h.
    """
    out, out_features, in_features = _core.linear_pack_out(weight)
    _core.linear_pack(out, weight)
    return PackedWeight(out, out_features, in_features)
