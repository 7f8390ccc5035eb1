"""Rotary position embedding of the text decoder and the vision tower. C++ contract: csrc/ops/rope.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor


def rope_table(
    positions: Tensor, head_dim: int, *, theta: float, out: Tensor | None = None
) -> Tensor:
    """Cosines and sines of all angles of a step: made once, it serves every layer.

    ``angle = positions[t] * theta ** (-2 * i / head_dim)`` in radians, the power and the product
    each rounded to float32; ``out[t, 2 * i] = cos(angle)``, ``out[t, 2 * i + 1] = sin(angle)``.

    Args:
        positions: ``[num_tokens]``, int64, contiguous, each >= 0.
        head_dim: even.
        theta: base of the frequencies, > 0. ERNIE-4.5 configs call it ``rope_theta`` (500000).
        out: where to write, ``[num_tokens, head_dim]``, float32, contiguous. Allocated when
            omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above; on the CPU
            also a position < 0. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """
    if out is None:
        out = _core.rope_table_out(positions, head_dim)
    _core.rope_table(out, positions, head_dim, theta)
    return out


def mrope_table(
    positions: Tensor,
    head_dim: int,
    *,
    theta: float,
    freq_allocation: int = 20,
    out: Tensor | None = None,
) -> Tensor:
    """As :func:`rope_table`, for tokens of text, images and videos: three positions each.

    Pair ``i`` turns with the time ``t`` where ``i >= head_dim / 2 - freq_allocation``; of the pairs
    before these the even ones turn with the height ``h``, the odd ones with the width ``w``. Tokens
    of text have three equal positions, and then the bits of :func:`rope_table`.

    Args:
        positions: ``[3, num_tokens]``, int64, contiguous, each >= 0: rows t, h, w.
        head_dim: even.
        theta: base of the frequencies, > 0. ERNIE-4.5 configs call it ``rope_theta`` (500000).
        freq_allocation: pairs that turn with the time, 0 to ``head_dim / 2``.
        out: where to write, ``[num_tokens, head_dim]``, float32, contiguous. Allocated when
            omitted.

    Returns:
        ``out``, a table for :func:`rope`.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above; on the CPU
            also a position < 0. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: ERNIE-4.5-VL's decoder; Su et al. 2021, arXiv:2104.09864.
    """
    if out is None:
        out = _core.mrope_table_out(positions, head_dim)
    _core.mrope_table(out, positions, head_dim, theta, freq_allocation)
    return out


def rope_2d_table(
    positions: Tensor, head_dim: int, *, theta: float = 10000.0, out: Tensor | None = None
) -> Tensor:
    """Cosines and sines of the angles of image patches, for :func:`rope_2d`.

    With ``frequency_j = theta ** (-4 * j / head_dim)``, ``j < head_dim / 4``: angle ``j`` is
    ``y * frequency_j`` and angle ``head_dim / 4 + j`` is ``x * frequency_j``, in radians, the power
    and the product each rounded to float32; ``out[t, i] = cos(angle_i)`` and
    ``out[t, head_dim / 2 + i] = sin(angle_i)``.

    Args:
        positions: ``[2, num_patches]``, int64, contiguous, each >= 0: rows y, x, of the patch in
            its image.
        head_dim: a multiple of 4.
        theta: base of the frequencies, > 0.
        out: where to write, ``[num_patches, head_dim]``, float32, contiguous. Allocated when
            omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above; on the CPU
            also a position < 0. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: ERNIE-4.5-VL's vision tower; Su et al. 2021, arXiv:2104.09864.
    """
    if out is None:
        out = _core.rope_2d_table_out(positions, head_dim)
    _core.rope_2d_table(out, positions, head_dim, theta)
    return out


def rope(
    query: Tensor, key: Tensor, positions: Tensor, *, theta: float, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions, in place.

    With ``cos`` and ``sin`` of pair ``i``: ``(x[2i], x[2i+1])`` becomes
    ``(x[2i] * cos - x[2i+1] * sin, x[2i+1] * cos + x[2i] * sin)``; computed in float32, rounded
    once to the dtype of ``x``.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, float32 or bfloat16, last stride 1, head_dim
            even; read and written.
        key: ``[num_tokens, num_kv_heads, head_dim]``, dtype of ``query``, last stride 1; read and
            written. Query and key may be heads of one buffer.
        positions: ``[num_tokens]``, int64, contiguous, each >= 0.
        theta: base of the frequencies, > 0; 500000 in ERNIE-4.5.
        table: ``[num_tokens, head_dim]``, float32, contiguous, from :func:`rope_table` or
            :func:`mrope_table`; ``positions`` and ``theta`` are not read then. Made from them when
            omitted.

    Returns:
        ``(query, key)``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above; on the CPU
            also a position < 0. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Su et al. 2021, arXiv:2104.09864; interleaved pairs as in ERNIE-4.5 and GPT-J.
    """
    if table is None:
        table = _core.rope_positions_out(query, positions)
        _core.rope_table(table, positions, table.shape[1], theta)
    _core.rope(query, key, table)
    return query, key


def rope_2d(query: Tensor, key: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys of image patches, in place: one half of a head with the other.

    With ``cos`` and ``sin`` of angle ``i`` and ``half = head_dim / 2``: ``(x[i], x[half + i])``
    becomes ``(x[i] * cos - x[half + i] * sin, x[half + i] * cos + x[i] * sin)``; computed in
    float32, rounded once to the dtype of ``x``.

    Args:
        query: ``[num_patches, num_heads, head_dim]``, float32 or bfloat16, last stride 1, head_dim
            even; read and written.
        key: ``[num_patches, num_kv_heads, head_dim]``, dtype of ``query``, last stride 1; read and
            written. Query and key may be heads of one buffer.
        table: ``[num_patches, head_dim]``, float32, contiguous, from :func:`rope_2d_table`.

    Returns:
        ``(query, key)``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above. Nothing is written
            then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Su et al. 2021, arXiv:2104.09864; halves as in ERNIE-4.5-VL's vision tower and GPT-NeoX.
    """
    _core.rope_2d(query, key, table)
    return query, key
