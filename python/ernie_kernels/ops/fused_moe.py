"""The routed experts of a layer in one op. C++ contract: csrc/ops/fused_moe.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.ops.grouped_gemm import ExpertWeights, as_experts

_T = TypeVar("_T")


def fused_moe(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w_gate_up: Tensor | ExpertWeights | Sequence[Tensor | ExpertWeights],
    w_down: Tensor | ExpertWeights | Sequence[Tensor | ExpertWeights],
    *,
    shared: Tensor | None = None,
    int8_activations: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """``out[t] = sum_j topk_weights[t, j] * expert(topk_ids[t, j], hidden_states[t]) + shared[t]``.

    ``expert(e, x) = linear(silu_and_mul(linear(x, w_gate_up[e])), w_down[e])``. Bit for bit what
    :func:`moe_sort`, :func:`grouped_linear_silu_and_mul`, :func:`grouped_linear` and
    :func:`moe_combine` make of it: the outputs of SwiGLU and of each expert are rounded to the
    dtype of ``hidden_states``. On the CPU a token's result depends neither on the other tokens nor
    on the number of threads.

    The experts may be in several banks of different kinds and widths: ids count those of all, bank
    after bank. A token's result is, bit for bit, that of a call with its own bank alone (on CUDA
    with :func:`set_batch_invariant`), and a bank that no token chooses is not read.

    Args:
        hidden_states: ``[num_tokens, hidden_size]``, float32 or bfloat16, last stride 1.
        topk_weights: ``[num_tokens, top_k]``, float32, contiguous, as of :func:`moe_route`.
        topk_ids: ``[num_tokens, top_k]``, int32, contiguous, fewer than 2**31 in all, each in
            ``[0, num_experts)``.
        w_gate_up: an :class:`ExpertWeights` or a tensor, as of :func:`grouped_linear`,
            ``[num_experts, 2 * intermediate_size, hidden_size]``, gate rows first, then up rows.
            Or a list or tuple of these, one for each bank; up to 4096 experts in all.
        w_down: the same, ``[num_experts, hidden_size, intermediate_size]``; may be kept otherwise.
        shared: what the shared experts make of the tokens, ``[num_tokens, hidden_size]``, dtype of
            ``hidden_states``, last stride 1, or None.
        int8_activations: as of :func:`wint8_linear`, in all products; int8 weights on the CPU
            only.
        out: where to write, shape and dtype of ``hidden_states``, last stride 1; may be ``shared``.
            Allocated when omitted.
        workspace: uint8, contiguous, :func:`fused_moe_workspace_size` bytes or more, at a multiple
            of 16 bytes. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or number differs from the above, or, on the
            CPU, an id is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: no kernel for the tensors' device.

    Source: the experts of transformers' Ernie4_5_Moe, which rounds to the model's dtype in between.
    """
    gate_up, down = _banks("w_gate_up", w_gate_up), _banks("w_down", w_down)
    if out is None:
        out = _core.fused_moe_out(hidden_states)
    if workspace is None:
        workspace = _core.fused_moe_workspace(hidden_states, topk_ids, gate_up, down)
    _core.fused_moe(
        out,
        hidden_states,
        topk_weights,
        topk_ids,
        gate_up,
        down,
        shared,
        workspace,
        int8_activations,
    )
    return out


def fused_moe_workspace_size(
    num_tokens: int,
    top_k: int,
    num_experts: int | Sequence[int],
    hidden_size: int,
    intermediate_size: int | Sequence[int],
    *,
    dtype: str,
    weight_dtype: str | Sequence[str] | None = None,
    device: str = "cpu",
) -> int:
    """Bytes of workspace that :func:`fused_moe` needs for a shape.

    Args:
        num_tokens: rows of ``hidden_states``; fewer never need more.
        top_k: experts per token.
        num_experts: 1 to 4096. Of several banks a list or tuple, and up to 4096 in all: a call with
            one of them alone never needs more.
        hidden_size: columns of ``hidden_states``.
        intermediate_size: columns of an expert's SwiGLU output; of several banks a list or tuple.
        dtype: of ``hidden_states``, ``"float32"`` or ``"bfloat16"``.
        weight_dtype: in which the experts' weights are kept, or a list or tuple, one for each bank;
            ``dtype`` when omitted, which serves all others too.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ArgumentError: a number below 0, no experts or more than 4096, sizes beyond 64 bits, an
            unknown name, not as many entries as banks.
    """
    experts = _of_banks(num_experts)
    kinds: list[str] = _of_banks(weight_dtype or dtype)
    return _core.fused_moe_workspace_size(
        device,
        dtype,
        kinds * len(experts) if len(kinds) == 1 else kinds,
        num_tokens,
        top_k,
        experts,
        hidden_size,
        _of_banks(intermediate_size),
    )


def _of_banks(given: _T | Sequence[_T]) -> list[_T]:
    """A list or tuple as a list; anything else alone in one."""
    return list(given) if isinstance(given, list | tuple) else [given]  # type: ignore[list-item]


def _banks(
    name: str, given: Tensor | ExpertWeights | Sequence[Tensor | ExpertWeights]
) -> list[list[Tensor | int | None]]:
    """The fields of each bank, as the binding takes them."""
    if isinstance(given, ExpertWeights):
        return [[given.weight, given.scale, given.out_features, given.in_features]]
    all_given = _of_banks(given)
    if len(all_given) == 1:
        entry_of = "" if given is all_given[0] else f"{type(given).__name__} of "
        banks = [as_experts("fused_moe", name, all_given[0], entry_of=entry_of)]
    else:
        banks = [as_experts("fused_moe", f"{name}[{i}]", w) for i, w in enumerate(all_given)]
    return [[w.weight, w.scale, w.out_features, w.in_features] for w in banks]
