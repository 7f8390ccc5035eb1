"""Linear layers with int8 weights, one scale per output channel. C++ contract: csrc/ops/wint8.h."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.ops.packed import PackedMatrix, matrix_of


@dataclass(frozen=True, slots=True)
class PackedWint8(PackedMatrix):
    """An int8 weight in the order that the CPU's kernels read it; made by :func:`wint8_pack`.

    ``tensor``: int8 ``[ceil(N / 16), ceil(K / 4), 16, 4]``, zeros beyond N and K.
    """


def wint8_linear(
    x: Tensor,
    weight: Tensor | PackedWint8,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    out: Tensor | None = None,
    dtype: str | None = None,
) -> Tensor:
    """``out[t, n] = scale[n] * sum_k x[t, k] * weight[n, k] + bias[n]``, rounded once at the end.

    The sum is taken in float32, on the CPU bit for bit as :func:`linear` takes it with the weight
    in bfloat16. A row's result does not depend on the other rows or on the number of threads there.
    Packed and plain weights give the same bits.

    Args:
        x: ``[num_tokens, in_features]``, float32 or bfloat16, last stride 1.
        weight: int8 ``[out_features, in_features]``, contiguous; or a :class:`PackedWint8` (CPU
            only, and several times faster there).
        scale: ``[out_features]``, float32, contiguous.
        bias: ``[out_features]``, float32 or bfloat16, contiguous, or None.
        int8_activations: round ``x`` to int8 first, with one scale for every row and 64 columns:
            ``max(abs(x)) / 127``. Products are then summed exactly within those 64 columns. Faster
            for many tokens, less accurate; CPU only. The result is the same on every machine. A
            group with NaN or infinity makes its row's outputs NaN.
        out: where to write, ``[num_tokens, out_features]``, dtype of ``x`` or float32. Allocated
            when omitted.
        dtype: of the allocated ``out``: that of ``x`` (default) or ``"float32"``.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: ``int8_activations`` on CUDA.

    Source: PaddlePaddle's ``weight_only_linear`` with ``weight_dtype="int8"``.
    """
    matrix, out_features = matrix_of("wint8_linear", weight, PackedWint8, x, out)
    if out is None:
        out = _core.wint8_linear_out(x, matrix, out_features, dtype)
    _core.wint8_linear(out, x, matrix, scale, bias, int8_activations)
    return out


def wint8_linear_silu_and_mul(
    x: Tensor,
    weight: Tensor | PackedWint8,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    out: Tensor | None = None,
    gate_up: Tensor | None = None,
) -> Tensor:
    """``silu_and_mul(wint8_linear(x, weight, scale, bias))``, bit for bit.

    On the CPU the projections never leave the cache.

    Args:
        x: ``[num_tokens, in_features]``, float32 or bfloat16, last stride 1.
        weight: as of :func:`wint8_linear`, with ``2 * intermediate_size`` rows, gate first, then
            up.
        scale: ``[2 * intermediate_size]``, float32, contiguous.
        bias: ``[2 * intermediate_size]``, float32 or bfloat16, contiguous, or None.
        int8_activations: as of :func:`wint8_linear`.
        out: where to write, ``[num_tokens, intermediate_size]``, dtype of ``x``, last stride 1.
            Allocated when omitted.
        gate_up: room for the projections on CUDA, ``[num_tokens, 2 * intermediate_size]``, dtype of
            ``x``, last stride 1. Allocated when ``out`` is omitted; the CPU needs none.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: ``int8_activations`` on CUDA.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    matrix, out_features = matrix_of(
        "wint8_linear_silu_and_mul", weight, PackedWint8, x, out, "intermediate_size"
    )
    if out is None:
        out, room = _core.wint8_linear_silu_and_mul_out(x, matrix, out_features)
        gate_up = room if gate_up is None else gate_up
    _core.wint8_linear_silu_and_mul(out, x, matrix, scale, bias, gate_up, int8_activations)
    return out


def wint8_quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to int8, one scale per output channel, the largest magnitude being 127.

    ``scale[n] = max_k abs(weight[n, k]) / 127`` and ``int8[n, k] = round(weight[n, k] / max * 127)``,
    halves away from zero.

    Args:
        weight: ``[out_features, in_features]``, float32 or bfloat16, last stride 1.

    Returns:
        int8 ``[out_features, in_features]``, and float32 ``[out_features]``: the scale rounded to
        the dtype of ``weight``. A row with NaN or infinity becomes zeros, its scale NaN.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        DeviceError: the weight is on a GPU that this build cannot use.

    Source: PaddlePaddle's ``weight_quantize`` with ``algo="weight_only_int8"``.
    """
    out, scale, _, _ = _core.wint8_quantize_out(weight, pack=False)
    _core.wint8_quantize(out, scale, weight)
    return out, scale


def wint8_pack(weight: Tensor) -> PackedWint8:
    """Reorder an int8 weight once for the CPU's kernels.

    Args:
        weight: int8 ``[out_features, in_features]``, last stride 1, on the CPU.

    Returns:
        A :class:`PackedWint8` that owns a copy: the original can be released.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        UnsupportedError: the weight is not on the CPU.

    Source: layout of csrc/ops/wint8.h.
    """
    out, out_features, in_features = _core.wint8_pack_out(weight)
    _core.wint8_pack(out, weight)
    return PackedWint8(out, out_features, in_features)


def wint8_quantize_and_pack(weight: Tensor) -> tuple[PackedWint8, Tensor]:
    """:func:`wint8_quantize` and :func:`wint8_pack`, a few rows at a time.

    Beside ``weight`` and the result it needs no memory to speak of, so that a model can be loaded
    in little more than it takes.

    Args:
        weight: ``[out_features, in_features]``, float32 or bfloat16, last stride 1, on the CPU.

    Returns:
        The packed weight, and its scales, float32 ``[out_features]``.

    Raises:
        ArgumentError: a shape, dtype or stride differs from the above.
        UnsupportedError: the weight is not on the CPU.

    Source: the two ops.
    """
    out, scale, out_features, in_features = _core.wint8_quantize_out(weight, pack=True)
    _core.wint8_quantize_and_pack(out, scale, weight)
    return PackedWint8(out, out_features, in_features), scale
