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
