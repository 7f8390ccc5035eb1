"""What a layer with experts did, op by op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.models.experts import MoE
from ernie_kernels.models.workspace import ExpertBuffers
from ernie_kernels.verify.formulas import Array

Arrays = dict[str, Array]


@dataclass(slots=True)
class ExpertTrace:
    """What the layer made, and what the ops that its fused op stands for make of the same.

    ``gated`` and ``outputs`` have a row for each choice of each token. What a token has nothing of is
    NaN: logits and ``gated`` of the bank that it did not ask.
    """

    logits: Array  # [tokens, num_experts of all banks]
    weights: Array  # [tokens, top_k]
    ids: npt.NDArray[np.int64]  # among the experts of all banks
    gated: list[Array | None]  # of each bank [tokens, top_k, width]; None: no token asked it
    outputs: Array  # [tokens, top_k, hidden_size]
    combined: Array
    shared_gated: Array | None
    shared: Array | None

    @classmethod
    def taken_from(cls, arrays: dict[str, Array], num_banks: int) -> ExpertTrace:
        """``arrays``: of all tokens, by the names of :func:`run_experts`; those are taken out."""
        return cls(
            logits=arrays.pop("logits"),
            weights=arrays.pop("weights"),
            ids=arrays.pop("ids").astype(np.int64),
            gated=[arrays.pop(f"expert_gated_{bank}", None) for bank in range(num_banks)],
            outputs=arrays.pop("outputs"),
            combined=arrays.pop("combined"),
            shared_gated=arrays.pop("shared_gated", None),
            shared=arrays.pop("shared", None),
        )


def run_experts(moe: MoE, x: Tensor, buffers: ExpertBuffers, *, has_banks: bool) -> Arrays:
    """Once more what ``moe`` has just done, op by op, with the experts that it chose.

    Args:
        has_banks: whether tokens of the step asked for other banks than the first.
    """
    count, num_banks = moe.gate_up_proj.num_experts, len(moe.gate_up_projs)
    num_asked = num_banks if has_banks else 1  # the rest is what an earlier step has left
    logits = np.full((len(x), count * num_banks), np.nan)
    logits[:, : count * num_asked] = buffers.router_logits.numpy()[:, : count * num_asked]
    ids, weights = buffers.topk_ids.numpy(), as_float64(buffers.topk_weights)
    tokens, top_k = ids.shape
    arrays = {"logits": logits, "weights": weights, "ids": ids.astype(np.float64)}
    shared = None
    if moe.shared_experts is not None:
        shared = empty(list(x.shape), x.dtype_name, x.device)
        moe.shared_experts(x, buffers.shared, out=shared)
        arrays |= {
            "shared_gated": as_float64(buffers.shared.gated),
            "shared": as_float64(shared),
        }
    arrays["outputs"] = np.full((tokens, top_k, x.shape[1]), np.nan)
    arrays["combined"] = np.full(tuple(x.shape), np.nan)
    banks = ids[:, 0] // count
    for bank in range(num_banks):
        rows = np.flatnonzero(banks == bank)
        made = _run_bank(moe, bank, rows, x, buffers, shared)
        for name, array in made.items():
            whole = arrays.setdefault(name, np.full((tokens, *array.shape[1:]), np.nan))
            whole[rows] = array
    return arrays


def _run_bank(
    moe: MoE,
    bank: int,
    rows: npt.NDArray[np.int64],
    x: Tensor,
    buffers: ExpertBuffers,
    shared: Tensor | None,
) -> Arrays:
    """The rows of one bank, as if there were no other."""

    def chosen(tensor: Tensor) -> Tensor:
        return from_numpy(np.ascontiguousarray(tensor.numpy()[rows]), x.device)

    gate_up, down = moe.gate_up_projs[bank], moe.down_projs[bank]
    # A row that names two banks is found elsewhere, and is not to end the run here.
    ids = buffers.topk_ids.numpy()[rows] - np.int32(bank * gate_up.num_experts)
    ids = ids.clip(0, gate_up.num_experts - 1)
    offsets, inverse, source_rows = ops.moe_sort(from_numpy(ids, x.device), gate_up.num_experts)
    int8 = moe.int8_activations
    gated = ops.grouped_linear_silu_and_mul(
        chosen(x), gate_up, offsets, source_rows=source_rows, int8_activations=int8
    )
    outputs = ops.grouped_linear(gated, down, offsets, int8_activations=int8)
    combined = ops.moe_combine(
        outputs,
        inverse,
        chosen(buffers.topk_weights),
        shared=None if shared is None else chosen(shared),
    )
    places = inverse.numpy()
    return {
        f"expert_gated_{bank}": as_float64(gated)[places],
        "outputs": as_float64(outputs)[places],
        "combined": as_float64(combined),
    }


def as_float64(tensor: Tensor) -> Array:
    return tensor.numpy().astype(np.float64)
