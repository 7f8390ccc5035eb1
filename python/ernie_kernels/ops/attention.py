"""Attention over the paged cache, and within segments. C++ contract: csrc/ops/attention.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.errors import UnsupportedError


def attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    max_seq_len: int,
    scale: float | None = None,
    causal: bool = True,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """Attention of ragged query sequences over a paged key/value cache.

    Prefill, decode and mixtures in one call: sequence ``s`` owns query rows ``cu_seqlens_q[s]`` to
    ``cu_seqlens_q[s + 1]``, the last of its ``seq_lens[s]`` tokens, whose keys and values are in
    the cache already. ``out = softmax(scale * q kᵀ) v``, float32 inside, rounded once; with bfloat16 on
    CUDA, and on CPUs with a fast bfloat16 dot product, probabilities are rounded to bfloat16 before
    they multiply the values. A row's result does not depend on the rest of the batch, on chunking
    or on the number of threads: on the CPU always, on CUDA where the batch-invariant kernels are
    chosen.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, float32 or bfloat16, last stride 1; head_dim
            even, at most 256.
        k_cache: ``[num_blocks, num_kv_heads, block_size, head_dim]``, dtype of ``query``,
            contiguous; block_size 16, 32 or 64; num_kv_heads divides num_heads.
        v_cache: as ``k_cache``.
        cu_seqlens_q: ``[num_seqs + 1]`` int32, from 0 to num_tokens.
        seq_lens: ``[num_seqs]`` int32, tokens of each sequence in the cache.
        block_table: ``[num_seqs, max_blocks]`` int32, cache blocks of each sequence in order.
        max_seqlen_q: at least the longest query sequence, in tokens.
        max_seq_len: at least the largest of ``seq_lens``, in tokens.
        scale: of the scores; ``head_dim ** -0.5`` when omitted.
        causal: a query sees the keys up to its own position; else all of its sequence.
        k_scale, v_scale: scales of a quantised cache; no such cache is supported yet.
        out: where to write, shape and dtype of ``query``. Allocated when omitted.
        workspace: uint8, contiguous: what CUDA needs where few long sequences are split; the error
            for one that is too small says how much. Taken from the stream's pool when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: scales are given.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Kwon et al. 2023, arXiv:2309.06180.
    """
    if k_scale is not None or v_scale is not None:
        raise UnsupportedError(
            "attention: k_scale, v_scale: this version has float32 and bfloat16 caches only"
        )
    if out is None:
        out = _core.empty_like(query, "attention", "query")
    if workspace is None:
        workspace = _core.attention_workspace(
            out, query, k_cache, seq_lens, max_seqlen_q, max_seq_len
        )
    _core.attention(
        out,
        query,
        k_cache,
        v_cache,
        cu_seqlens_q,
        seq_lens,
        block_table,
        max_seqlen_q,
        max_seq_len,
        scale,
        causal,
        workspace,
    )
    return out


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention within segments that lie one after the other, without a mask: vision encoders.

    Segment ``s`` owns rows ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``; each of its queries sees all
    of its keys and no other segment's. ``out = softmax(scale * q kᵀ) v``, float32 inside, rounded once;
    with bfloat16 on CUDA, and on CPUs with a fast bfloat16 dot product, probabilities are rounded to
    bfloat16 before they multiply the values. A row's result depends on its own segment alone, on
    CUDA too, and not on the number of threads.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, float32 or bfloat16, last stride 1; head_dim
            even, at most 256.
        key: ``[num_tokens, num_kv_heads, head_dim]``, dtype of ``query``, last stride 1;
            num_kv_heads divides num_heads.
        value: as ``key``. The three may be parts of one buffer, as a fused projection writes it.
        cu_seqlens: ``[num_segments + 1]`` int32, from 0 to num_tokens; a segment may be empty.
        max_seqlen: at least the longest segment, in tokens.
        scale: of the scores; ``head_dim ** -0.5`` when omitted.
        out: where to write, shape and dtype of ``query``. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or value differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    if out is None:
        out = _core.empty_like(query, "varlen_attention", "query")
    _core.varlen_attention(out, query, key, value, cu_seqlens, max_seqlen, scale)
    return out
