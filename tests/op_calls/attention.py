"""Attention, its cache and its positions."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from op_calls.one_op import Op, zeros


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


OPS = {
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
}
