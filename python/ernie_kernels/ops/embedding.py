"""Token embedding. C++ contract: csrc/ops/embedding.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.ops.gemm import PackedWeight
from ernie_kernels.ops.packed import check_width
from ernie_kernels.ops.wint4 import PackedWint4
from ernie_kernels.ops.wint8 import PackedWint8


def embedding(
    input_ids: Tensor,
    weight: Tensor | PackedWeight | PackedWint8 | PackedWint4,
    *,
    scale: Tensor | None = None,
    vocab_size: int | None = None,
    dtype: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Look up the rows of a table: ``out[t] = weight[input_ids[t]]``, times their scales if rounded.

    Args:
        input_ids: ``[num_tokens]``, int64, contiguous, each in ``[0, vocab_size)``.
        weight: ``[vocab_size, hidden_size]``, float32 or bfloat16, contiguous; or what
            :func:`linear_pack` makes of it (CPU only), so that a model whose head is tied to its
            embedding keeps one copy. The bare packed tensor needs ``vocab_size`` and ``out``.
            Also int8, plain or (CPU only) as :func:`wint8_pack` makes it; and of 4 bits, uint8
            ``[vocab_size, ceil(hidden_size / 2)]`` of :func:`wint4_quantize`, or (CPU only) as
            :func:`wint4_pack` makes it. ``out`` tells a plain one that hidden_size is odd.
        scale: ``[vocab_size]``, float32, contiguous; with an int8 or 4-bit ``weight`` alone.
        vocab_size: rows of the table; that of ``weight`` when omitted.
        dtype: of the allocated ``out``, ``"float32"`` or ``"bfloat16"``; that of ``weight`` when
            omitted, float32 for an int8 or 4-bit one. Float32 values are rounded to bfloat16, ties to even.
        out: where to write, ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
            Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU,
            an id is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: an ordinary embedding; rows of ``embed_tokens`` in ERNIE-4.5's checkpoints.
    """
    table, hidden_size = weight, None
    if isinstance(weight, PackedWeight | PackedWint8 | PackedWint4):
        table, hidden_size = weight.tensor, weight.in_features
        check_width("embedding: out", out, "hidden_size", hidden_size)  # panels are padded
        if vocab_size is None:
            vocab_size = weight.out_features
    if out is None:
        out = _core.embedding_out(input_ids, table, hidden_size, dtype)
    _core.embedding(out, input_ids, table, scale, vocab_size)
    return out
