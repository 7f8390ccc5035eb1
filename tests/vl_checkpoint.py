"""Tiny vision-language checkpoints with seeded random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import safetensors_bytes
from released_configs import as_nested
from tiny_checkpoint import BASE, DTYPES, MOE, make_weights, to_paddle

TOWER = "vision_model."

_IDS = {
    "im_patch_id": 190,
    "video_token_id": 191,
    "image_start_token_id": 192,
    "image_end_token_id": 193,
    "video_start_token_id": 194,
    "video_end_token_id": 195,
}
_TINY: dict[str, Any] = {
    **BASE,
    **MOE,
    **_IDS,
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_vl_moe",
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "moe_num_experts": [8, 8],
    "moe_k": 3,
    "moe_intermediate_size": [24, 16],
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [29, 28],
    "rope_3d": True,
    "freq_allocation": 2,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 1.5,
        "hidden_act": "quick_gelu",
    },
}
# As the released models are, but for their sizes.
VL_SHAPES: dict[str, dict[str, Any]] = {
    "28b": _TINY,
    "424b": {
        **_TINY,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "head_dim": 8,
        "freq_allocation": 2,
        "tie_word_embeddings": False,
        "moe_k": 4,
        "moe_intermediate_size": [40, 24],
        "moe_num_shared_experts": None,
        "moe_layer_start_index": [2, 2],
    },
    # Heads of the released sizes: 128 with pairs 22, 22, 20, and 80 in the tower.
    "real_heads": {
        **_TINY,
        "hidden_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "num_hidden_layers": 2,
        "freq_allocation": 20,
        "vision_config": {
            "depth": 2,
            "hidden_size": 160,
            "num_heads": 2,
            "mlp_ratio": 2,
            "hidden_act": "quick_gelu",
        },
    },
}


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text model with the text bank alone."""
    first = ("moe_num_experts", "moe_intermediate_size", "moe_layer_start_index")
    text = {key: value for key, value in config.items() if key not in (*_IDS, "vision_config")}
    text |= {key: config[key][0] for key in first}
    del text["rope_3d"], text["freq_allocation"]
    return {**text, **{k: MOE[k] for k in ("architectures", "model_type", "moe_layer_end_index")}}


def make_vl_weights(config: dict[str, Any], dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by their names in Baidu's PT files."""
    text = text_config(config)
    weights = make_weights(text, dtype, seed)
    # The vision bank: the experts of another model of that width.
    bank = {**text, "moe_intermediate_size": config["moe_intermediate_size"][1]}
    other = make_weights(bank, dtype, seed + 1)
    count = text["moe_num_experts"]
    for name in list(weights):
        if name.endswith(".mlp.gate.weight"):
            weights[name], weights[f"{name}_1"] = weights[name].T.copy(), other[name].T.copy()
        elif name.endswith("e_score_correction_bias"):
            weights[name] = np.concatenate([weights[name], other[name]])
        elif ".experts." in name:
            head, _, tail = name.partition(".experts.")
            index, _, member = tail.partition(".")
            weights[f"{head}.experts.{int(index) + count}.{member}"] = other[name]
    return weights | _vision_weights(config, dtype, np.random.default_rng(seed + 2))


def _vision_weights(
    config: dict[str, Any], dtype: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    tower = config["vision_config"]
    size, width = tower["hidden_size"], int(tower["hidden_size"] * tower["mlp_ratio"])
    weights = {}

    def linear(name: str, out_features: int, in_features: int, has_bias: bool = True) -> None:
        matrix = rng.standard_normal((out_features, in_features)) * in_features**-0.5
        weights[f"{name}.weight"] = matrix.astype(DTYPES[dtype])
        if has_bias:
            bias = rng.standard_normal(out_features) * 0.3
            weights[f"{name}.bias"] = bias.astype(DTYPES[dtype])

    def layer_norm(name: str, features: int) -> None:
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, features).astype(DTYPES[dtype])
        weights[f"{name}.bias"] = (rng.standard_normal(features) * 0.3).astype(DTYPES[dtype])

    linear(f"{TOWER}patch_embed.proj", size, 588, has_bias=False)
    for index in range(tower["depth"]):
        block = f"{TOWER}blocks.{index}"
        layer_norm(f"{block}.norm1", size)
        layer_norm(f"{block}.norm2", size)
        linear(f"{block}.attn.qkv", 3 * size, size)
        linear(f"{block}.attn.proj", size, size)
        linear(f"{block}.mlp.fc1", width, size)
        linear(f"{block}.mlp.fc2", size, width)
    layer_norm(f"{TOWER}ln", size)
    resampler = "model.resampler_model"
    for name, features in (("spatial_linear", 4 * size), ("temporal_linear", 8 * size)):
        linear(f"{resampler}.{name}.0", 4 * size, features)
        linear(f"{resampler}.{name}.2", 4 * size, 4 * size)
        layer_norm(f"{resampler}.{name}.3", 4 * size)
    linear(f"{resampler}.mlp", config["hidden_size"], 4 * size)
    norm = rng.uniform(0.5, 1.5, config["hidden_size"])
    weights[f"{resampler}.after_norm.weight"] = norm.astype(DTYPES[dtype])
    return weights


def write_vl_checkpoint(
    folder: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    is_nested: bool = False,
    shape: str = "28b",
    **changes: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write config.json and model.safetensors; returns the flat configuration and the weights.

    ``is_nested``: the configuration as transformers saves it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**VL_SHAPES[shape], "torch_dtype": dtype, **changes}
    weights = make_vl_weights(config, dtype, seed)
    (folder / "config.json").write_text(json.dumps(as_nested(config) if is_nested else config))
    safetensors_bytes.save(folder / "model.safetensors", weights)
    return config, weights


def vl_to_paddle(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model as Paddle stores it: written here from the format, not from the loader."""
    vision = {name: array for name, array in weights.items() if is_of_vision(name)}
    # Routers lie as in the PT files of these models: [hidden_size, num_experts].
    routers = {name: array for name, array in weights.items() if ".mlp.gate.weight" in name}
    text = {n: a for n, a in weights.items() if n not in vision and n not in routers}
    result = to_paddle(text)
    result |= {name.replace("model.", "ernie.", 1): array for name, array in routers.items()}
    for name, array in vision.items():
        stored = name if name.startswith(TOWER) else name.replace("model.", "ernie.", 1)
        result[stored] = array.T.copy() if array.ndim == 2 else array
    return result


def vl_to_saved(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same model under the names that transformers saves."""
    return {
        f"model.{name}" if name.startswith(TOWER) else name: array
        for name, array in weights.items()
    }


def is_of_vision(name: str) -> bool:
    return name.startswith(TOWER) or ".resampler_model." in name
