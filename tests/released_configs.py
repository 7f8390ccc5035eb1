"""``config.json`` of released models, with the values that decide what they compute."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "vocab_size": 103424,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_bias": False,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

ERNIE_0_3B: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Ernie4_5_ForCausalLM"],
    "model_type": "ernie4_5",
    "num_hidden_layers": 18,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 3072,
    "tie_word_embeddings": True,
}

ERNIE_21B: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "num_hidden_layers": 28,
    "hidden_size": 2560,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "intermediate_size": 12288,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": True,
}

ERNIE_300B: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Ernie4_5_MoEForCausalLM"],
    "model_type": "ernie4_5_moe",
    "num_hidden_layers": 54,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "moe_num_experts": 64,
    "moe_k": 8,
    "moe_intermediate_size": 3584,
    "moe_num_shared_experts": None,
    "moe_layer_start_index": 3,
    "moe_layer_end_index": 53,
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
}

# As in Baidu's own files: the text model's keys at the top, lists of two by modality.
ERNIE_VL_28B: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_moe_vl",
    "num_hidden_layers": 28,
    "hidden_size": 2560,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "intermediate_size": 12288,
    "moe_num_experts": [64, 64],
    "moe_k": 6,
    "moe_intermediate_size": [1536, 512],
    "moe_capacity": [128, 128],
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [29, 28],
    "moe_layer_interval": 1,
    "moe_use_aux_free": True,
    "rope_3d": True,
    "freq_allocation": 20,
    "im_patch_id": 100295,
    "pixel_hidden_size": 1280,
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "use_temporal_conv": True,
    "modality_detach": False,
    "tie_word_embeddings": True,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1280,
        "hidden_act": "quick_gelu",
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "attn_sep": True,
        "model_type": "DFNRope_vision_transformer",
    },
}

ERNIE_VL_424B: dict[str, Any] = {
    **ERNIE_VL_28B,
    "num_hidden_layers": 54,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "moe_k": 8,
    "moe_intermediate_size": [3584, 1536],
    "moe_num_shared_experts": None,
    "moe_layer_start_index": [3, 3],
    "moe_layer_end_index": [53, 53],
    "tie_word_embeddings": False,
}


def as_nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The same model as transformers 5 saves it, written here from its file format."""
    text_keys = (
        "vocab_size", "hidden_act", "max_position_embeddings", "rms_norm_eps", "use_bias",
        "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "num_hidden_layers",
        "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "moe_k", "moe_intermediate_size", "tie_word_embeddings",
    )  # fmt: skip
    start, end = min(flat["moe_layer_start_index"]), max(flat["moe_layer_end_index"])
    kinds = ["sparse" if start <= i <= end else "dense" for i in range(flat["num_hidden_layers"])]
    half = flat.get("head_dim", flat["hidden_size"] // flat["num_attention_heads"]) // 2
    time = flat["freq_allocation"]
    tower = flat["vision_config"]
    return {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "model_type": "ernie4_5_vl_moe",
        "dtype": flat["torch_dtype"],
        "image_token_id": flat["im_patch_id"],
        "image_start_token_id": flat.get("image_start_token_id", 101304),
        "image_end_token_id": flat.get("image_end_token_id", 101305),
        "video_start_token_id": flat.get("video_start_token_id", 101306),
        "video_end_token_id": flat.get("video_end_token_id", 101307),
        "video_token_id": flat.get("video_token_id", 103367),
        "tie_word_embeddings": flat["tie_word_embeddings"],
        "text_config": {
            **{key: flat[key] for key in text_keys if key in flat},
            "model_type": "ernie4_5_vl_moe_text",
            "dtype": flat["torch_dtype"],
            "tie_word_embeddings": True,  # as transformers leaves it, whatever the whole says
            "mlp_layer_types": kinds,
            "moe_num_experts": flat["moe_num_experts"][0],
            "moe_num_shared_experts": flat["moe_num_shared_experts"] or 0,
            "moe_norm_min": 1e-12,
            "rope_parameters": {
                "mrope_section": [(half - time) // 2, (half - time) // 2, time],
                "rope_theta": flat["rope_theta"],
                "rope_type": "default",
            },
        },
        "vision_config": {
            **{key: tower[key] for key in ("depth", "hidden_size", "hidden_act", "num_heads")},
            "in_channels": 3,
            "intermediate_size": int(tower["hidden_size"] * tower["mlp_ratio"]),
            "model_type": "ernie4_5_vl_moe_vision",
            "patch_size": 14,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
            "spatial_merge_size": 2,
            "temporal_merge_size": 2,
        },
    }
