"""Linear layers with 4-bit weights, one scale per output channel. C++ contract: csrc/ops/wint4.h."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.ops.packed import PackedMatrix, matrix_of


@dataclass(frozen=True, slots=True)
class PackedWint4(PackedMatrix):
    """A 4-bit weight in the order that the CPU's kernels read it; made by :func:`wint4_pack`.

    ``tensor``: uint8 ``[ceil(N / 16), ceil(K / 8), 16, 4]``, zeros beyond N and K.
    """


def wint4_linear(
    x: Tensor,
    weight: Tensor | PackedWint4,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    dtype: str | None = None,
) -> Tensor:
    """``out[t, n] = scale[n] * sum_k x[t, k] * weight[n, k] + bias[n]``, rounded once at the end.

    As :func:`wint8_linear` with two weights in a byte: on the CPU bit for bit :func:`linear` with
    the weight in bfloat16.

    Args:
        x: ``[num_tokens, in_features]``, float32 or bfloat16, last stride 1.
        weight: uint8 ``[out_features, ceil(in_features / 2)]``, contiguous, of :func:`wint4_quantize`;
            or a :class:`PackedWint4` (CPU only, and several times faster there).
        scale: ``[out_features]``, float32, contiguous.
        bias: ``[out_features]``, float32 or bfloat16, contiguous, or None.
        out: where to write, ``[num_tokens, out_features]``, dtype of ``x`` or float32. Allocated
            when omitted.
        dtype: of the allocated ``out``: that of ``x`` (default) or ``"float32"``.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: PaddlePaddle's ``weight_only_linear`` with ``weight_dtype="int4"``.
    """
    matrix, out_features = matrix_of("wint4_linear", weight, PackedWint4, x, out)
    if out is None:
        out = _core.wint4_linear_out(x, matrix, out_features, dtype)
    _core.wint4_linear(out, x, matrix, scale, bias)
    return out


def wint4_linear_silu_and_mul(
    x: Tensor,
    weight: Tensor | PackedWint4,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    gate_up: Tensor | None = None,
) -> Tensor:
    """``silu_and_mul(wint4_linear(x, weight, scale, bias))``, bit for bit.

    Args:
        x: as of :func:`wint4_linear`.
        weight: as of :func:`wint4_linear`, with ``2 * intermediate_size`` rows, gate first, then
            up.
        scale: ``[2 * intermediate_size]``, float32, contiguous.
        bias: ``[2 * intermediate_size]``, float32 or bfloat16, contiguous, or None.
        out: as of :func:`wint8_linear_silu_and_mul`.
        gate_up: likewise: room for the projections on CUDA.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    matrix, out_features = matrix_of(
        "wint4_linear_silu_and_mul", weight, PackedWint4, x, out, "intermediate_size"
    )
    if out is None:
        out, room = _core.wint4_linear_silu_and_mul_out(x, matrix, out_features)
        gate_up = room if gate_up is None else gate_up
    _core.wint4_linear_silu_and_mul(out, x, matrix, scale, bias, gate_up)
    return out


def wint4_quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 4 bits, one scale per output channel, the largest magnitude being 7.

    ``scale[n] = max_k abs(weight[n, k]) / 7`` and ``int4[n, k] = round(weight[n, k] / max * 7)``,
    halves away from zero. Two neighbours share a byte, the even ``k`` in its low half, both in
    two's complement; what is left over beyond an odd ``K`` is zero.

    Args:
        weight: ``[out_features, in_features]``, float32 or bfloat16, last stride 1.

    Returns:
        uint8 ``[out_features, ceil(in_features / 2)]``, and float32 ``[out_features]``: the scale
        rounded to the dtype of ``weight``. A row with NaN or infinity becomes zeros, its scale NaN.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        DeviceError: the weight is on a GPU that this build cannot use.

    Source: PaddlePaddle's ``weight_quantize`` with ``algo="weight_only_int4"``, by channel.
    """
    out, scale, _, _ = _core.wint4_quantize_out(weight, pack=False)
    _core.wint4_quantize(out, scale, weight)
    return out, scale


def wint4_pack(weight: Tensor, in_features: int | None = None) -> PackedWint4:
    """Reorder a 4-bit weight once for the CPU's kernels.

    Args:
        weight: uint8 ``[out_features, ceil(in_features / 2)]``, last stride 1, on the CPU.
        in_features: twice the columns of ``weight`` (default), or one less.

    Returns:
        A :class:`PackedWint4` that owns a copy: the original can be released.

    Raises:
        ArgumentError: a shape, dtype, stride or number differs from the above.
        UnsupportedError: the weight is not on the CPU.

    Source: layout of csrc/ops/wint4.h.
    """
    out, out_features, in_features = _core.wint4_pack_out(weight, in_features)
    _core.wint4_pack(out, weight)
    return PackedWint4(out, out_features, in_features)


def wint4_quantize_and_pack(weight: Tensor) -> tuple[PackedWint4, Tensor]:
    """:func:`wint4_quantize` and :func:`wint4_pack` as :func:`wint8_quantize_and_pack` does it.

    Args:
        weight: as of :func:`wint4_quantize`, on the CPU.

    Returns:
        The packed weight, and its scales, float32 ``[out_features]``.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        UnsupportedError: the weight is not on the CPU.

    Source: the two ops.
    """
    out, scale, out_features, in_features = _core.wint4_quantize_out(weight, pack=True)
    _core.wint4_quantize_and_pack(out, scale, weight)
    return PackedWint4(out, out_features, in_features), scale
