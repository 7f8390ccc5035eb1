"""Mixtures of experts."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from op_calls.one_op import Op, zeros


def moe_sort_tensors() -> dict[str, np.ndarray]:
    return {
        "topk_ids": np.array([[0, 3], [3, 1], [1, 0]], np.int32),
        "expert_offsets": zeros(5, dtype=np.int64),
        "inverse": zeros(3, 2, dtype=np.int32),
    }


def grouped_linear_tensors() -> dict[str, np.ndarray]:
    return {
        "x": zeros(3, 8),
        "weight": zeros(4, 10, 8),
        "expert_offsets": np.array([0, 2, 2, 2, 5], np.int64),
        "source_rows": np.array([0, 2, 1, 1, 0], np.int32),
    }


def fused_moe_tensors() -> dict[str, np.ndarray]:
    return {
        "hidden_states": zeros(3, 8),
        "topk_weights": zeros(3, 2),
        "topk_ids": np.array([[0, 3], [3, 1], [1, 0]], np.int32),
        "w_gate_up": zeros(4, 10, 8),
        "w_down": zeros(4, 8, 5),
        "shared": zeros(3, 8),
        "out": zeros(3, 8),
        "workspace": zeros(8192, dtype=np.uint8),
    }


OPS = {
    "moe_route": Op(
        ops.moe_route,
        lambda: {
            "router_logits": zeros(3, 8),
            "correction_bias": zeros(8),
            "flags": zeros(3, dtype=np.uint8),
            "topk_weights": zeros(3, 2),
            "topk_ids": zeros(3, 2, dtype=np.int32),
        },
        scalars={"top_k": 2},
        written=frozenset({"flags", "topk_weights", "topk_ids"}),
        leading={"router_logits": (0, 1)},
    ),
    "moe_route of banks": Op(
        ops.moe_route,
        lambda: {
            "router_logits": zeros(3, 8),
            "correction_bias": zeros(2, 4),
            "banks": np.array([0, 1, 0], np.uint8),
            "flags": zeros(3, dtype=np.uint8),
            "topk_weights": zeros(3, 2),
            "topk_ids": zeros(3, 2, dtype=np.int32),
        },
        scalars={"top_k": 2, "num_banks": 2},
        written=frozenset({"flags", "topk_weights", "topk_ids"}),
        leading={"router_logits": (0, 1)},
    ),
    "moe_sort": Op(
        ops.moe_sort,
        lambda: moe_sort_tensors() | {"source_rows": zeros(6, dtype=np.int32)},
        scalars={"num_experts": 4},
        written=frozenset({"expert_offsets", "inverse", "source_rows"}),
        leading={"topk_ids": (0, 1)},
    ),
    "moe_dispatch": Op(
        ops.moe_dispatch,
        lambda: {"hidden_states": zeros(3, 8)} | moe_sort_tensors() | {"permuted": zeros(6, 8)},
        scalars={"num_experts": 4},
        written=frozenset({"permuted", "expert_offsets", "inverse"}),
        leading={"hidden_states": (0, 1), "topk_ids": (1,)},
    ),
    "moe_combine": Op(
        ops.moe_combine,
        lambda: {
            "x": zeros(6, 8),
            "inverse": np.array([[0, 3], [4, 1], [2, 5]], np.int32),
            "topk_weights": zeros(3, 2),
            "shared": zeros(3, 8),
            "out": zeros(3, 8),
        },
        written=frozenset({"out"}),
        leading={"x": (1,), "inverse": (0, 1)},
    ),
    "grouped_linear": Op(
        ops.grouped_linear,
        lambda: grouped_linear_tensors() | {"out": zeros(5, 10)},
        written=frozenset({"out"}),
        leading={"x": (0,), "weight": (0, 1, 2), "out": (0,)},
    ),
    "grouped_linear_silu_and_mul": Op(
        ops.grouped_linear_silu_and_mul,
        lambda: grouped_linear_tensors() | {"out": zeros(5, 5)},
        written=frozenset({"out"}),
        leading={"x": (0,), "weight": (0, 1, 2), "out": (0,)},
    ),
    "fused_moe": Op(
        ops.fused_moe,
        fused_moe_tensors,
        written=frozenset({"out", "workspace"}),
        leading={
            "hidden_states": (0, 1),
            "topk_ids": (1,),
            "w_gate_up": (0, 1),
            "workspace": (0,),
        },
    ),
}
