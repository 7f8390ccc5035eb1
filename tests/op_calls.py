"""One good call of every op, for tests that make it wrong. A new op needs one row in OPS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ernie_kernels import ops

# They serve ops and have no kernel: room for weights, how much of it,
# or a view.
NO_OPS = frozenset(
    {"expert_weights", "expert_weights_set", "fused_moe_workspace_size", "spatial_merge"}
)


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Op:
    call: Callable[..., Any]
    tensors: Callable[[], dict[str, np.ndarray]]
    """Makes one good value for each tensor argument."""
    scalars: dict[str, Any] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    leading: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Dimensions that other arguments must follow, so that the blame falls on those."""


def kv_cache_write_tensors() -> dict[str, np.ndarray]:
    return {
        "key": zeros(3, 2, 4),
        "value": zeros(3, 2, 4),
        "k_cache": zeros(5, 2, 8, 4),
        "v_cache": zeros(5, 2, 8, 4),
        "slot_mapping": np.arange(3, dtype=np.int32),
    }


def attention_tensors() -> dict[str, np.ndarray]:
    return {
        "query": zeros(4, 2, 8),
        "k_cache": zeros(3, 1, 16, 8),
        "v_cache": zeros(3, 1, 16, 8),
        "cu_seqlens_q": np.array([0, 3, 4], np.int32),
        "seq_lens": np.array([3, 9], np.int32),
        "block_table": np.array([[1], [0]], np.int32),
        "out": zeros(4, 2, 8),
    }


def varlen_attention_tensors() -> dict[str, np.ndarray]:
    return {
        "query": zeros(5, 4, 8),
        "key": zeros(5, 2, 8),
        "value": zeros(5, 2, 8),
        "cu_seqlens": np.array([0, 3, 3, 5], np.int32),
        "out": zeros(5, 4, 8),
    }


def penalties_tensors() -> dict[str, np.ndarray]:
    return {
        "logits": zeros(2, 8),
        "token_ids": zeros(4, dtype=np.int64),
        "cu_tokens": np.array([0, 2, 4], np.int32),
        "prompt_lens": zeros(2, dtype=np.int32),
        "repetition_penalty": np.ones(2, np.float32),
        "presence_penalty": zeros(2),
        "frequency_penalty": zeros(2),
    }


def sample_tensors() -> dict[str, np.ndarray]:
    return {
        "out": zeros(2, dtype=np.int64),
        "logits": zeros(2, 8),
        "temperature": zeros(2),
        "top_k": zeros(2, dtype=np.int32),
        "top_p": np.ones(2, np.float32),
        "min_p": zeros(2),
        "seed": zeros(2, dtype=np.int64),
        "position": zeros(2, dtype=np.int64),
    }


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


def patches_tensors() -> dict[str, np.ndarray]:
    """An image of 2 x 4 patches and a video of 2 frames of 2 x 2, each of 3 x 3 pixels."""
    return {
        "pixels": np.arange(16 * 27).astype(np.uint8),
        "grid_thw": np.array([[1, 2, 4], [2, 2, 2]]),
        "levels": zeros(3, 256),
    }


OPS = {
    "rms_norm": Op(
        ops.rms_norm,
        lambda: {"x": zeros(3, 8), "weight": zeros(8), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "add_rms_norm": Op(
        ops.add_rms_norm,
        lambda: {
            "x": zeros(3, 8),
            "residual": zeros(3, 8),
            "weight": zeros(8),
            "out": zeros(3, 8),
        },
        written=frozenset({"residual", "out"}),
        leading={"x": (0, 1)},
    ),
    "layer_norm": Op(
        ops.layer_norm,
        lambda: {"x": zeros(3, 8), "weight": zeros(8), "bias": zeros(8), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "add_layer_norm": Op(
        ops.add_layer_norm,
        lambda: {
            "x": zeros(3, 8),
            "residual": zeros(3, 8),
            "weight": zeros(8),
            "bias": zeros(8),
            "out": zeros(3, 8),
        },
        written=frozenset({"residual", "out"}),
        leading={"x": (0, 1)},
    ),
    "linear": Op(
        ops.linear,
        lambda: {"x": zeros(3, 8), "weight": zeros(5, 8), "bias": zeros(5), "out": zeros(3, 5)},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "linear with gelu": Op(
        ops.linear,
        lambda: {"x": zeros(3, 8), "weight": zeros(5, 8), "bias": zeros(5), "out": zeros(3, 5)},
        scalars={"activation": "gelu"},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "linear_silu_and_mul": Op(
        ops.linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 8),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "linear_pack": Op(ops.linear_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}),
    "wint8_linear": Op(
        ops.wint8_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 8, dtype=np.int8),
            "scale": zeros(5),
            "bias": zeros(5),
            "out": zeros(3, 5),
        },
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint8_linear with int8 activations": Op(
        ops.wint8_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 8, dtype=np.int8),
            "scale": zeros(5),
            "out": zeros(3, 5),
        },
        scalars={"int8_activations": True},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint8_linear_silu_and_mul": Op(
        ops.wint8_linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 8, dtype=np.int8),
            "scale": zeros(10),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "wint8_quantize": Op(
        ops.wint8_quantize, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint8_quantize and pack": Op(
        ops.wint8_quantize_and_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint8_pack": Op(
        ops.wint8_pack,
        lambda: {"weight": zeros(5, 8, dtype=np.int8)},
        leading={"weight": (0, 1)},
    ),
    "attention": Op(
        ops.attention,
        attention_tensors,
        scalars={"max_seqlen_q": 3, "max_seq_len": 9},
        written=frozenset({"out"}),
        leading={"query": (0, 1, 2), "k_cache": (0, 1), "seq_lens": (0,), "block_table": (1,)},
    ),
    "varlen_attention": Op(
        ops.varlen_attention,
        varlen_attention_tensors,
        scalars={"max_seqlen": 3},
        written=frozenset({"out"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
    "kv_cache_write": Op(
        ops.kv_cache_write,
        kv_cache_write_tensors,
        written=frozenset({"k_cache", "v_cache"}),
        leading={"key": (0, 1, 2), "k_cache": (0, 2)},
    ),
    "kv_cache_copy_blocks": Op(
        ops.kv_cache_copy_blocks,
        lambda: {
            "k_cache": zeros(5, 2, 8, 4),
            "v_cache": zeros(5, 2, 8, 4),
            "block_mapping": np.array([[0, 1]], np.int32),
        },
        written=frozenset({"k_cache", "v_cache"}),
        leading={"k_cache": (0, 1, 2, 3), "block_mapping": (0,)},
    ),
    "embedding": Op(
        ops.embedding,
        lambda: {
            "input_ids": zeros(3, dtype=np.int64),
            "weight": zeros(5, 8),
            "out": zeros(3, 8),
        },
        written=frozenset({"out"}),
        leading={"input_ids": (0,), "weight": (0,), "out": (1,)},
    ),
    "embedding of int8": Op(
        ops.embedding,
        lambda: {
            "input_ids": zeros(3, dtype=np.int64),
            "weight": zeros(5, 8, dtype=np.int8),
            "scale": zeros(5),
            "out": zeros(3, 8),
        },
        written=frozenset({"out"}),
        leading={"input_ids": (0,), "weight": (0,), "out": (1,)},
    ),
    "embedding of 4 bits": Op(
        ops.embedding,
        lambda: {
            "input_ids": zeros(3, dtype=np.int64),
            "weight": zeros(5, 4, dtype=np.uint8),
            "scale": zeros(5),
            "out": zeros(3, 8),
        },
        written=frozenset({"out"}),
        leading={"input_ids": (0,), "weight": (0,), "out": (1,)},
    ),
    "silu_and_mul": Op(
        ops.silu_and_mul,
        lambda: {"x": zeros(3, 16), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "gelu": Op(
        ops.gelu,
        lambda: {"x": zeros(3, 8), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "quick_gelu": Op(
        ops.quick_gelu,
        lambda: {"x": zeros(3, 8), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "rope_table": Op(
        ops.rope_table,
        lambda: {"positions": zeros(3, dtype=np.int64), "out": zeros(3, 8)},
        scalars={"head_dim": 8, "theta": 10000.0},
        written=frozenset({"out"}),
        leading={"positions": (0,)},
    ),
    "mrope_table": Op(
        ops.mrope_table,
        lambda: {"positions": zeros(3, 3, dtype=np.int64), "out": zeros(3, 8)},
        scalars={"head_dim": 8, "theta": 10000.0, "freq_allocation": 1},
        written=frozenset({"out"}),
        leading={"positions": (1,)},
    ),
    "rope_2d_table": Op(
        ops.rope_2d_table,
        lambda: {"positions": zeros(2, 3, dtype=np.int64), "out": zeros(3, 8)},
        scalars={"head_dim": 8},
        written=frozenset({"out"}),
        leading={"positions": (1,)},
    ),
    "rope": Op(
        ops.rope,
        lambda: {
            "query": zeros(3, 4, 8),
            "key": zeros(3, 2, 8),
            "positions": zeros(3, dtype=np.int64),
        },
        scalars={"theta": 10000.0},
        written=frozenset({"query", "key"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
    "rope with a table": Op(
        ops.rope,
        lambda: {"query": zeros(3, 4, 8), "key": zeros(3, 2, 8), "table": zeros(3, 8)},
        scalars={"theta": 10000.0, "positions": None},
        written=frozenset({"query", "key"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
    "rope_2d": Op(
        ops.rope_2d,
        lambda: {"query": zeros(3, 4, 8), "key": zeros(3, 2, 8), "table": zeros(3, 8)},
        written=frozenset({"query", "key"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
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
    "wint4_linear": Op(
        ops.wint4_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 4, dtype=np.uint8),
            "scale": zeros(5),
            "bias": zeros(5),
            "out": zeros(3, 5),
        },
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint4_linear_silu_and_mul": Op(
        ops.wint4_linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 4, dtype=np.uint8),
            "scale": zeros(10),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "wint4_quantize": Op(
        ops.wint4_quantize, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint4_quantize and pack": Op(
        ops.wint4_quantize_and_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint4_pack": Op(
        ops.wint4_pack,
        lambda: {"weight": zeros(5, 4, dtype=np.uint8)},
        leading={"weight": (0, 1)},
    ),
    "apply_penalties": Op(
        ops.apply_penalties,
        penalties_tensors,
        written=frozenset({"logits"}),
        leading={"logits": (0, 1), "token_ids": (0,)},
    ),
    "sample": Op(
        ops.sample, sample_tensors, written=frozenset({"out"}), leading={"logits": (0, 1)}
    ),
    "image_patches": Op(
        ops.image_patches,
        lambda: patches_tensors() | {"out": zeros(16, 27)},
        scalars={"patch_size": 3},
        written=frozenset({"out"}),
        leading={"grid_thw": (0,)},
    ),
    "patch_embed": Op(
        ops.patch_embed,
        lambda: (
            patches_tensors()
            | {"weight": zeros(5, 27), "patches": zeros(7, 27), "out": zeros(16, 5)}
        ),
        scalars={"patch_size": 3},
        written=frozenset({"out", "patches"}),
        leading={"grid_thw": (0,), "weight": (0,), "patches": (0,)},
    ),
    "temporal_merge": Op(
        ops.temporal_merge,
        lambda: {
            "x": zeros(4, 8),
            "grid_thw": np.array([[1, 2, 4], [2, 2, 2]]),
            "out": zeros(3, 16),
        },
        written=frozenset({"out"}),
        leading={"x": (1,), "grid_thw": (0,)},
    ),
    "scatter_rows": Op(
        ops.scatter_rows,
        lambda: {"x": zeros(3, 8), "rows": np.array([4, 0, 2], np.int32), "out": zeros(5, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "out": (0,)},
    ),
}
