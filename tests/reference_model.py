"""The text ERNIE-4.5 forward pass in numpy and float64: slow, obvious, no cache, no package.

Weights are a mapping from checkpoint names to arrays; matrices are ``[out_features, in_features]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def forward(
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    ids: list[int],
    rounded: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    *,
    with_head: bool = True,
):
    """Logits of every token of one sequence, ``[len(ids), vocab_size]``.

    Without the head: the hidden states before the final norm.

    ``rounded`` is what the model does to the input of every projection and of the head.
    """
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, eps = config["head_dim"], config["rms_norm_eps"]

    def linear(x, name):
        return rounded(x) @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def mlp(x, name):
        gate = linear(x, f"{name}.gate_proj")
        return linear(
            gate / (1 + np.exp(-gate)) * linear(x, f"{name}.up_proj"), f"{name}.down_proj"
        )

    def experts(x, name):
        logits = x @ w[f"{name}.gate.weight"].T
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        scores = p + w[f"{name}.moe_statics.e_score_correction_bias"][0]
        chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : config["moe_k"]]
        out = mlp(x, f"{name}.shared_experts") if config["moe_num_shared_experts"] else 0 * x
        for token, taken in enumerate(chosen):
            total = max(p[token, taken].sum(), config["moe_norm_min"])
            for e in taken:
                out[token] += (
                    p[token, e] / total * mlp(x[token : token + 1], f"{name}.experts.{e}")[0]
                )
        return out

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    x = w["model.embed_tokens.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        a = norm(x, f"{layer}.input_layernorm")
        query, key, value = (
            linear(a, f"{layer}.self_attn.{part}_proj").reshape(len(ids), -1, head_dim)
            for part in "qkv"
        )
        query, key = (rope(each, config["rope_theta"]) for each in (query, key))
        mixed = np.empty((len(ids), heads, head_dim))
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            scores = query[:, head] @ key[:, kv_head].T / np.sqrt(head_dim)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = p / p.sum(-1, keepdims=True) @ value[:, kv_head]
        x = x + linear(mixed.reshape(len(ids), -1), f"{layer}.self_attn.o_proj")
        b = norm(x, f"{layer}.post_attention_layernorm")
        is_moe = f"{layer}.mlp.gate.weight" in w
        x = x + (experts if is_moe else mlp)(b, f"{layer}.mlp")
    if not with_head:
        return x
    x = norm(x, "model.norm")
    return rounded(x) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def rope(x: np.ndarray, theta: float) -> np.ndarray:
    """Interleaved rotation of ``[tokens, heads, head_dim]`` at positions 0, 1, ..."""
    head_dim = x.shape[-1]
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.arange(len(x))[:, None, None] * frequency
    even, odd = x[..., ::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., ::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = odd * np.cos(angle) + even * np.sin(angle)
    return out
