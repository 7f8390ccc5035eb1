"""Mixture of experts around its matrix products. C++ contract: csrc/ops/moe.h.

All four ops give the same bits on the CPU, at any number of threads, and on CUDA; a token's results
do not depend on the other tokens.
"""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor


def moe_route(
    router_logits: Tensor,
    correction_bias: Tensor,
    top_k: int,
    *,
    banks: Tensor | None = None,
    num_banks: int = 1,
    norm_min: float = 1e-12,
    flags: Tensor | None = None,
    topk_weights: Tensor | None = None,
    topk_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the experts of every token, and weigh them.

    With ``p = softmax(router_logits[t])`` over all experts, the ids are those of the ``top_k``
    largest ``p + correction_bias``, in descending order, of equal ones the lower id first; the
    weights are ``p[ids] / max(sum(p[ids]), norm_min)``. The bias chooses and never weighs.
    Everything is float32.

    Of several banks of experts, one after the other, a token has one: its result is, bit for bit,
    that of a call with the columns of its bank alone, and the ids count the experts of all banks.
    What the columns of other banks hold does not matter.

    Args:
        router_logits: ``[num_tokens, num_banks * num_experts]``, float32, last stride 1, 1 to 4096
            columns. Any values: a row with a logit or a bias that is NaN or infinite gets the first
            ``top_k`` experts, each with weight NaN.
        correction_bias: ``[num_banks * num_experts]``, of several banks also
            ``[num_banks, num_experts]``, float32, contiguous. ERNIE-4.5's checkpoints call it
            ``e_score_correction_bias``.
        top_k: experts per token, 1 to ``num_experts``.
        banks: ``[num_tokens]``, uint8, contiguous: the bank of each token, below ``num_banks``. May
            be omitted where there is one.
        num_banks: divides the columns of ``router_logits``.
        norm_min: finite, > 0. ERNIE-4.5's configs call it ``moe_norm_min``.
        flags: ``[num_tokens]``, uint8, contiguous, or None. Becomes 1 where a row is not finite and
            stays as it is elsewhere, so that one array can serve all layers of a step.
        topk_weights: where to write, ``[num_tokens, top_k]``, float32, contiguous. Allocated when
            omitted.
        topk_ids: where to write, ``[num_tokens, top_k]``, int32, contiguous. Allocated when omitted.

    Returns:
        ``topk_weights`` and ``topk_ids``. The ids of a row are distinct and in range.

    Raises:
        ArgumentError: a shape, dtype, device, stride or number differs from the above, or, on the
            CPU, a bank is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the router of transformers' Ernie4_5_Moe, which leaves the order of equal scores open.
    """
    if topk_weights is None or topk_ids is None:
        made = _core.moe_route_out(router_logits, top_k)
        topk_weights = made[0] if topk_weights is None else topk_weights
        topk_ids = made[1] if topk_ids is None else topk_ids
    _core.moe_route(
        topk_weights,
        topk_ids,
        flags,
        router_logits,
        correction_bias,
        banks,
        num_banks,
        top_k,
        norm_min,
    )
    return topk_weights, topk_ids


def moe_sort(
    topk_ids: Tensor,
    num_experts: int,
    *,
    expert_offsets: Tensor | None = None,
    inverse: Tensor | None = None,
    source_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Order the choices of all tokens by expert; those of an expert by token and slot.

    Args:
        topk_ids: ``[num_tokens, top_k]``, int32, contiguous, fewer than 2**31 in all, each in
            ``[0, num_experts)``.
        num_experts: 1 to 4096.
        expert_offsets: where to write, ``[num_experts + 1]``, int64, contiguous. Allocated when
            omitted.
        inverse: where to write, ``[num_tokens, top_k]``, int32, contiguous. Allocated when omitted.
        source_rows: where to write, ``[num_tokens * top_k]``, int32, contiguous. Allocated when
            omitted.

    Returns:
        ``expert_offsets``: expert ``e`` has the places from ``expert_offsets[e]`` up to
        ``expert_offsets[e + 1]``, none where the two are equal. ``inverse``: the place of each
        choice. ``source_rows``: the token at each place.

    Raises:
        ArgumentError: a shape, dtype, device, stride or number differs from the above, or, on the
            CPU, an id is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: a stable counting sort.
    """
    if expert_offsets is None or inverse is None or source_rows is None:
        made = _core.moe_sort_out(topk_ids, num_experts, "moe_sort")
        expert_offsets = made[0] if expert_offsets is None else expert_offsets
        inverse = made[1] if inverse is None else inverse
        source_rows = made[2] if source_rows is None else source_rows
    _core.moe_sort(expert_offsets, inverse, source_rows, topk_ids, num_experts)
    return expert_offsets, inverse, source_rows


def moe_dispatch(
    hidden_states: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    *,
    permuted: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the rows of the tokens into the order of :func:`moe_sort`, one for each choice.

    ``permuted[inverse[t, j]] = hidden_states[t]``, to the bit.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        topk_ids: ``[num_tokens, top_k]``, int32, contiguous, fewer than 2**31 in all, each in
            ``[0, num_experts)``.
        num_experts: 1 to 4096.
        permuted: where to write, ``[num_tokens * top_k, hidden_size]``, dtype of ``hidden_states``,
            last stride 1. Allocated when omitted.
        expert_offsets: where to write, ``[num_experts + 1]``, int64, contiguous. Allocated when
            omitted.
        inverse: where to write, ``[num_tokens, top_k]``, int32, contiguous. Allocated when omitted.

    Returns:
        ``permuted``, and ``expert_offsets`` and ``inverse`` of :func:`moe_sort`.

    Raises:
        ArgumentError: a shape, dtype, device, stride or number differs from the above, or, on the
            CPU, an id is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: a stable counting sort, and a copy.
    """
    if permuted is None:
        permuted = _core.moe_dispatch_out(hidden_states, topk_ids)
    if expert_offsets is None or inverse is None:
        made = _core.moe_sort_out(topk_ids, num_experts, "moe_dispatch")
        expert_offsets = made[0] if expert_offsets is None else expert_offsets
        inverse = made[1] if inverse is None else inverse
    _core.moe_dispatch(permuted, expert_offsets, inverse, hidden_states, topk_ids, num_experts)
    return permuted, expert_offsets, inverse


def moe_combine(
    x: Tensor,
    inverse: Tensor,
    topk_weights: Tensor,
    *,
    shared: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``out[t] = sum_j topk_weights[t, j] * x[inverse[t, j]] + shared[t]``.

    In float32, slot after slot from zero, each product and sum rounded, ``shared`` last; rounded
    to ``x.dtype`` once.

    Args:
        x: ``[num_tokens * top_k, hidden_size]``, float32 or bfloat16, last stride 1: what the
            experts make of the rows of :func:`moe_dispatch`.
        inverse: ``[num_tokens, top_k]``, int32, contiguous, each in ``[0, num_tokens * top_k)``.
        topk_weights: ``[num_tokens, top_k]``, float32, contiguous.
        shared: what the shared experts make of the tokens, ``[num_tokens, hidden_size]``, dtype of
            ``x``, last stride 1, or None.
        out: where to write, shape and dtype of ``shared``, last stride 1; may be ``shared``.
            Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU, a
            place is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the experts of transformers' Ernie4_5_Moe, which rounds to the model's dtype in between.
    """
    if out is None:
        out = _core.moe_combine_out(x, inverse)
    _core.moe_combine(out, x, shared, topk_weights, inverse)
    return out
