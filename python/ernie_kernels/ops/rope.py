"""Rotary position embedding of the text decoder. C++ contract: csrc/ops/rope.h."""

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
        table: ``[num_tokens, head_dim]``, float32, contiguous, from :func:`rope_table`;
            ``positions`` and ``theta`` are not read then. Made from them when omitted.

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
