"""Refuses to compare a model with one of another shape."""

from __future__ import annotations

from typing import Any

from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.verify.architecture import Architecture

Pairs = dict[str, tuple[Any, Any]]


def check_shapes(config: ModelConfig, reference: Architecture) -> None:
    """Raises ConfigError where the two differ in a number that decides a shape or a rule."""
    pairs = _text(config, reference) | _experts(config, reference) | _vision(config, reference)
    pairs |= _media_ids(config, reference)
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"verify: {key} is {ours} in the model and {theirs} in the reference; give the "
                "folder of the same model"
            )


def _text(config: ModelConfig, reference: Architecture) -> Pairs:
    return {
        "vocab_size": (config.vocab_size, reference.vocab_size),
        "hidden_size": (config.hidden_size, reference.hidden_size),
        "intermediate_size": (config.intermediate_size, reference.intermediate_size),
        "num_hidden_layers": (config.num_hidden_layers, reference.num_layers),
        "num_attention_heads": (config.num_attention_heads, reference.num_heads),
        "num_key_value_heads": (config.num_key_value_heads, reference.num_kv_heads),
        "head_dim": (config.head_dim, reference.head_dim),
    }


def _experts(config: ModelConfig, reference: Architecture) -> Pairs:
    experts = reference.experts
    layers = [index for index, plan in enumerate(config.layers) if plan.mlp == "moe"]
    widths = [list(config.layers[index].bank_widths) for index in layers[:1]]
    return {
        "moe_num_experts": (config.num_experts, experts.count),
        "moe_k": (config.top_k, experts.top_k),
        "moe_intermediate_size": (widths, [list(experts.widths)] if experts.widths else []),
        "moe_num_shared_experts": (config.num_shared_experts, experts.num_shared),
        "layers with experts": (layers, [i for i, has in enumerate(experts.layers) if has]),
    }


def _vision(config: ModelConfig, reference: Architecture) -> Pairs:
    ours, theirs = config.vision, reference.vision
    if ours is None or theirs is None:
        return {"vision_config": (_presence(ours), _presence(theirs))}
    names = ("depth", "hidden_size", "num_heads", "intermediate_size")
    return {f"vision_config.{name}": (getattr(ours, name), getattr(theirs, name)) for name in names}


def _media_ids(config: ModelConfig, reference: Architecture) -> Pairs:
    """But for that of videos: nothing stands in its row, and Baidu's files have that of images."""
    ours, theirs = config.media_tokens, reference.media_ids
    if ours is None or theirs is None:
        return {}
    names = ("image", "image_start", "image_end", "video_start", "video_end")
    return {f"{name}_token_id": (getattr(ours, name), getattr(theirs, name)) for name in names}


def _presence(part: Any) -> str:
    return "absent" if part is None else "present"
