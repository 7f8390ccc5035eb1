"""What a small dense model wants of a checkpoint, and random weights that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ernie_kernels.models.loader import WeightSpec, open_checkpoint
from safetensors_bytes import BFLOAT16

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 6, 2, 1, 4, 10, 13


def specs(*, use_bias: bool = False, tied: bool = True) -> dict[str, WeightSpec]:
    """The tensors of a dense model with two layers."""
    outputs = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    embedding = WeightSpec((VOCAB, HIDDEN), ("vocab_size", "hidden_size"))
    result = {"model.embed_tokens.weight": embedding}
    for layer in ("model.layers.0.", "model.layers.1."):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            result[f"{layer}{norm}.weight"] = WeightSpec((HIDDEN,), ("hidden_size",))
        for name, shape in outputs.items():
            result[f"{layer}{name}.weight"] = WeightSpec(shape, ("hidden_size", "head_dim"))
            if use_bias:
                result[f"{layer}{name}.bias"] = WeightSpec(shape[:1])
    result["model.norm.weight"] = WeightSpec((HIDDEN,), ("hidden_size",))
    if not tied:
        result["lm_head.weight"] = embedding
    return result


def random_weights(rng, wanted, dtype=BFLOAT16) -> dict[str, np.ndarray]:
    return {n: rng.standard_normal(s.shape, np.float32).astype(dtype) for n, s in wanted.items()}


def assert_loads(folder: Path, weights: dict[str, np.ndarray], wanted=None) -> None:
    with open_checkpoint(folder) as checkpoint:
        checkpoint.require(wanted or specs())
        for name, expected in weights.items():
            dtype = expected.dtype.name
            np.testing.assert_array_equal(checkpoint.tensor(name, dtype=dtype), expected)
