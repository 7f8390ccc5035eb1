"""Tiny checkpoints with seeded random weights, written where a test wants them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import safetensors_bytes
import tokenizer_files

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

BASE = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "vocab_size": 203,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
}

MOE = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "moe_norm_min": 1e-12,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
}
# As the released models are, but for their sizes. Their head_dim is hidden_size / heads.
MOE_SHAPES: dict[str, dict[str, Any]] = {
    "21b": {
        **MOE,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "moe_num_experts": 8,
        "moe_k": 3,
        "moe_intermediate_size": 24,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
    "300b": {
        **MOE,
        "hidden_size": 128,
        "intermediate_size": 104,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": False,
        "moe_num_experts": 12,
        "moe_k": 4,
        "moe_intermediate_size": 40,
        "moe_num_shared_experts": None,
        "moe_layer_start_index": 3,
    },
}


def has_experts(config: dict[str, Any], layer: int) -> bool:
    if "moe_k" not in config:
        return False
    start, end = config["moe_layer_start_index"], config["moe_layer_end_index"]
    inside = start <= layer and (end == -1 or layer <= end)
    return inside and (layer + 1) % config["moe_layer_interval"] == 0


def make_weights(config: dict[str, Any], dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name; scaled so that activations stay near 1 and logits near 2.

    Routers are float32 in any case. Their biases are as large as the probabilities, so that they
    change many choices.
    """
    rng = np.random.default_rng(seed)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    weights = {}

    def normal(name: str, *shape: int, scale: float) -> None:
        weights[name] = (rng.standard_normal(shape) * scale).astype(DTYPES[dtype])

    def linear(name: str, out_features: int, in_features: int) -> None:
        normal(f"{name}.weight", out_features, in_features, scale=in_features**-0.5)
        if config["use_bias"]:
            normal(f"{name}.bias", out_features, scale=0.5)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, hidden).astype(DTYPES[dtype])

    def mlp(name: str, width: int) -> None:
        linear(f"{name}.gate_proj", width, hidden)
        linear(f"{name}.up_proj", width, hidden)
        linear(f"{name}.down_proj", hidden, width)

    def experts(name: str) -> None:
        count, width = config["moe_num_experts"], config["moe_intermediate_size"]
        gate = rng.standard_normal((count, hidden)) * hidden**-0.5
        weights[f"{name}.gate.weight"] = gate.astype(np.float32)
        bias = rng.uniform(-1, 1, (1, count)) / count
        weights[f"{name}.moe_statics.e_score_correction_bias"] = bias.astype(np.float32)
        for index in range(count):
            mlp(f"{name}.experts.{index}", width)
        if config["moe_num_shared_experts"]:
            mlp(f"{name}.shared_experts", config["moe_num_shared_experts"] * width)

    normal("model.embed_tokens.weight", vocab, hidden, scale=0.5 * hidden**-0.5)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        norm(f"{layer}.input_layernorm")
        norm(f"{layer}.post_attention_layernorm")
        linear(f"{layer}.self_attn.q_proj", query, hidden)
        linear(f"{layer}.self_attn.k_proj", key, hidden)
        linear(f"{layer}.self_attn.v_proj", key, hidden)
        linear(f"{layer}.self_attn.o_proj", hidden, query)
        if has_experts(config, index):
            experts(f"{layer}.mlp")
        else:
            mlp(f"{layer}.mlp", config["intermediate_size"])
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        normal("lm_head.weight", vocab, hidden, scale=0.5 * hidden**-0.5)
    return weights


def write_checkpoint(
    folder: Path, *, dtype: str = "float32", seed: int = 0, **changes: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write config.json and model.safetensors; returns the configuration and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**BASE, "dtype": dtype, **changes}
    weights = make_weights(config, dtype, seed)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(folder / "model.safetensors", weights)
    return config, weights


def write_checkpoint_with_tokenizer(folder: Path, **changes: Any) -> Path:
    """What generates from text: see :func:`write_checkpoint`."""
    write_checkpoint(folder, **{"vocab_size": tokenizer_files.VOCAB_SIZE, **changes})
    return tokenizer_files.write_tokenizer(folder)


def to_paddle(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model as Paddle stores it: written here from the format, not from the loader."""
    result = {}
    for name, array in weights.items():
        stored = name.replace("model.", "ernie.", 1) if name.startswith("model.") else name
        if ".q_proj." in name or ".gate_proj." in name:
            others = ("q", "k", "v") if ".q_proj." in name else ("gate", "up")
            fused = "qkv_proj" if len(others) == 3 else "up_gate_proj"
            parts = [weights[name.replace(f".{others[0]}_proj.", f".{o}_proj.")] for o in others]
            stored = stored.replace(f"{others[0]}_proj", fused)
            array = np.concatenate(parts)
        elif any(f".{member}_proj." in name for member in ("k", "v", "up")):
            continue
        linear = "_proj." in name or name == "lm_head.weight" or ".mlp.gate." in name
        result[stored] = array.T.copy() if linear and array.ndim == 2 else array
    return result


def to_stacked(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model under the names that transformers 5 has in memory: experts in one tensor."""
    result, stacks = {}, {}
    for name, array in weights.items():
        head, is_expert, tail = name.partition(".experts.")
        if is_expert:
            index, member, _ = tail.split(".")
            stacks.setdefault(head, {})[int(index), member] = array
        else:
            result[name.replace(".mlp.moe_statics.", ".mlp.gate.moe_statics.")] = array
    for head, parts in stacks.items():
        experts = range(len(parts) // 3)
        gate_up = [np.concatenate([parts[e, "gate_proj"], parts[e, "up_proj"]]) for e in experts]
        result[f"{head}.experts.gate_up_proj"] = np.stack(gate_up)
        result[f"{head}.experts.down_proj"] = np.stack([parts[e, "down_proj"] for e in experts])
    return result


def in_shards(weights: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Spread over three files, for ``safetensors_bytes.save_sharded``."""
    shards: dict[str, dict[str, np.ndarray]] = {}
    for i, (name, array) in enumerate(weights.items()):
        shards.setdefault(f"model-{i % 3 + 1:05}-of-00003.safetensors", {})[name] = array
    return shards


def random_ids(rng: np.random.Generator, *lengths: int, vocab_size: int = 203) -> list[list[int]]:
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]
