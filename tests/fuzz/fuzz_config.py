"""config.json and generation_config.json: read as a checked configuration, or a ConfigError."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from mutation import json_text_changed

from ernie_kernels.errors import ConfigError
from ernie_kernels.models.architectures import ARCHITECTURES
from ernie_kernels.models.config import DTYPES, load_config
from ernie_kernels.models.config_reader import EXPERT_RANGES, SIZE_RANGES, VISION_RANGES
from ernie_kernels.models.memory_plan import plan_memory
from released_configs import ERNIE_21B, ERNIE_300B, ERNIE_VL_28B, as_nested
from tiny_checkpoint import BASE

ALLOWED = (ConfigError,)
FILES = ("config.json", "generation_config.json")
FOLDER = tempfile.TemporaryDirectory()
WORDS = [
    *SIZE_RANGES, *EXPERT_RANGES, *VISION_RANGES, *DTYPES, "architectures", "model_type", "rope_theta", "rope_parameters",
    "rope_scaling", "rope_type", "default", "linear", "gelu", "quantization_config", "quant_method",
    "wint4", "layer_types", "full_attention", "sliding_window", "mlp_layer_types", "sparse", "auto_map",
    "moe_use_aux_free", "moe_gate_act", "softmax", "moe_norm_min", "num_experts", "n_group",
    "eos_token_id", "torch_dtype", "head_dim", "compression_ratio", "text_config", "vision_config",
    "rope_3d", "mrope_section", "im_patch_id", "image_token_id", "video_end_token_id", "mlp_ratio",
    "embed_dim", "patch_size", "axial", "quick_gelu", "pixel_hidden_size",
    *(name for row in ARCHITECTURES for name in (*row.class_names, *row.model_types)),
]  # fmt: skip


def seeds() -> list[Any]:
    nested = {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    del nested["rope_theta"], nested["head_dim"]
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "temperature": 0.8}
    configs = [
        BASE,
        nested,
        {**BASE, "dtype": "bfloat16", "eos_token_id": 2, "auto_map": {"a": "b"}},
        ERNIE_21B,
        {**ERNIE_300B, "num_hidden_layers": 4, "mlp_layer_types": ["dense"] * 3 + ["sparse"]},
        {**ERNIE_VL_28B, "num_hidden_layers": 3},
        as_nested({**ERNIE_VL_28B, "num_hidden_layers": 3}),
    ]
    return [
        {"config.json": json.dumps(config), "generation_config.json": generation}
        for config in configs
        for generation in (None, json.dumps(ids))
    ]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    file = FILES[draw.random() < 0.2]
    text = case[file] if case[file] is not None else "{}"
    case[file] = json_text_changed(text, other[file] or "{}", draw, WORDS)
    return case


def run(case: Any) -> None:
    folder = Path(FOLDER.name)
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
        if case[file] is not None:
            (folder / file).write_text(case[file], encoding="utf-8", errors="replace")
    config = load_config(folder)
    for key, (low, high) in SIZE_RANGES.items():
        assert low <= getattr(config, key) <= high
    assert len(config.layers) == config.num_hidden_layers
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.dtype in (None, *DTYPES)
    assert 0 < config.rms_norm_eps < 2.0**128 > config.rope_theta > 0
    for plan in config.layers:
        assert (plan.mlp == "moe") == (plan.num_experts > 0)
        assert 0 <= plan.top_k <= plan.num_experts <= 4096
    has_experts = any(plan.mlp == "moe" for plan in config.layers)
    assert config.correction_bias == has_experts
    assert config.architecture != "ernie4_5" or not has_experts
    has_vision = config.architecture == "ernie4_5_vl_moe"
    assert (config.vision is not None) == (config.media_tokens is not None) == has_vision
    if config.vision is not None and config.media_tokens is not None:
        assert config.vision.head_dim * config.vision.num_heads == config.vision.hidden_size
        assert 1 <= config.freq_allocation <= config.head_dim // 2
        ids = config.media_tokens.placeholders | config.media_tokens.around
        assert all(0 <= i < config.vocab_size for i in ids)
    for plan in config.layers:
        assert len(plan.bank_widths) == (1 + has_vision if plan.mlp == "moe" else 0)
    plan = plan_memory(config)
    assert plan.weight_bytes >= plan.read_bytes_per_token > 0
    ids = (config.bos_token_id, config.pad_token_id, *config.eos_token_ids)
    assert all(i is None or 0 <= i < config.vocab_size for i in ids)
