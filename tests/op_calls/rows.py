"""What is done to each row by itself: norms, activations, embedding, sampling."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from op_calls.one_op import Op, zeros


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
    "apply_penalties": Op(
        ops.apply_penalties,
        penalties_tensors,
        written=frozenset({"logits"}),
        leading={"logits": (0, 1), "token_ids": (0,)},
    ),
    "sample": Op(
        ops.sample, sample_tensors, written=frozenset({"out"}), leading={"logits": (0, 1)}
    ),
}
