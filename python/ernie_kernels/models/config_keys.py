"""What becomes of the keys of a configuration that no field is read from.

A key is harmless, or has values with which it is, or is refused; a key of no family that could
change a result is warned of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.models.config_reader import SIZE_RANGES, ConfigReader

logger = logging.getLogger("ernie_kernels")

# Read by load_config or one of its parts.
_USED_KEYS = frozenset(SIZE_RANGES) | {
    "architectures", "model_type", "hidden_act", "rms_norm_eps", "rope_theta", "rope_parameters",
    "rope_scaling", "tie_word_embeddings", "use_bias", "dtype", "torch_dtype", "bos_token_id",
    "eos_token_id", "pad_token_id", "num_nextn_predict_layers", "multi_token_pred_depth",
}  # fmt: skip

# Bookkeeping, training and back-end switches that every released file may carry: no effect here.
HARMLESS_KEYS = frozenset({
    "_name_or_path", "transformers_version", "paddlenlp_version", "use_cache", "initializer_range",
    "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder", "id2label",
    "label2id", "problem_type", "chunk_size_feed_forward", "torchscript", "pruned_heads", "tie_encoder_decoder",
    "attention_dropout", "attention_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout",
    "hidden_dropout_prob", "dropout", "ignored_index", "max_sequence_length", "use_flash_attention",
    "use_flash_attn", "fuse_rope", "fuse_rms_norm", "fuse_swiglu", "fuse_linear", "fuse_attn_ffn",
    "fuse_softmax_mask", "recompute", "sep_token_id", "cls_token_id", "unk_token_id",
})  # fmt: skip

# Keys that would change the result: the values with which they do not. null is neutral for all.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "compression_ratio": (1, 1.0),  # positions are divided by it
    "use_rmsnorm": (True,),
    "rope_3d": (False,),
    "partial_rotary_factor": (1, 1.0),
    "sliding_window": (),
    "use_sliding_window": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "is_decoder": (True, False),
    "add_cross_attention": (False,),
    "logits_soft_cap": (),
    "final_logit_softcapping": (),
    "attn_logit_softcapping": (),
    # No quantisation method is supported by this version.
    "quantization": (),
    "quantization_config": (),
    "dense_quant_type": (),
    "moe_quant_type": (),
    "is_quantized": (False,),
}
# An unknown key of one of these families can change the result too.
_DECISIVE_PREFIXES = (
    "quant",
    "kv_cache_quant",
    "weight_quant",
    "rope_",
    "moe_",
    "sliding_",
    "mrope",
)


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Of one model variant, beside those that hold for all."""

    used: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] | None = None


DENSE_KEYS = KeyRules(neutral={"moe_num_experts": (0,), "mlp_layer_types": ()})
MOE_KEYS = KeyRules(
    used=frozenset({
        "moe_num_experts", "num_experts", "moe_k", "num_experts_per_tok", "moe_intermediate_size",
        "moe_num_shared_experts", "moe_norm_min", "moe_gate_act", "moe_use_aux_free", "use_aux_free",
        "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval", "mlp_layer_types",
    }),
    # Losses, dropout, capacities and communication of training. At inference no token is dropped.
    harmless=frozenset({
        "moe_capacity", "moe_aux_loss_lambda", "moe_z_loss_lambda", "moe_orthogonal_loss_lambda",
        "moe_group_orthogonal_loss", "global_aux_loss", "router_aux_loss_coef",
        "output_router_logits", "moe_dropout_prob", "moe_all_to_all_dropout", "sinkhorn_2gate",
        "sinkhorn_temp", "moe_reverse_token_drop", "moe_group",
        "moe_multimodal_dispatch_use_allgather", "moe_dense_experts_token_type_id",
        "use_recompute_moe", "fuse_gate_detach_matmul", "multi_token_pred_lambda",
        "enable_mtp_magic_send", "use_recompute_mtp",
    }),
    neutral={
        # Names of the training code's gates, all of which choose as the correction bias says.
        "moe_gate": ("topk", "topk_fused", "top2", "top2_fused"),
        "moe_norm_gate_logits": (True,),
        "norm_topk_prob": (True,),
        "scoring_func": ("softmax",),
        "routed_scaling_factor": (1, 1.0),
        "moe_group_experts": (False,),
        "n_group": (0, 1),
        "topk_group": (0, 1),
        "moe_use_hard_gate": (False,),
        "moe_use_token_type_bias": (False,),
        "moe_num_attn_experts": (0, False),
    },
)  # fmt: skip


# Of the whole of a vision-language model, the nested text keys among them.
VL_KEYS = KeyRules(
    used=MOE_KEYS.used | frozenset({
        "vision_config", "rope_3d", "freq_allocation", "im_patch_id", "image_token_id",
        "video_token_id", "image_start_token_id", "image_end_token_id", "video_start_token_id",
        "video_end_token_id", "spatial_conv_size", "temporal_conv_size", "pixel_hidden_size",
    }),
    # How training treats the modalities.
    harmless=MOE_KEYS.harmless | frozenset({
        "modality_detach", "max_text_id", "moe_use_size_all2all", "moe_layer_feed_fake_token",
        "moe_group_origin", "moe_rank", "moe_world_size",
    }),
    neutral={
        **(MOE_KEYS.neutral or {}),
        "multimodel_experts": (True,),
        "use_temporal_conv": (True,),
        "mm_vocab_size": (0,),  # entries of a second embedding
        # Names of the choice by modality, and for the PT files the default of that choice.
        "moe_use_hard_gate": (True, False),
    },
)  # fmt: skip
# Of the object vision_config.
TOWER_KEYS = KeyRules(
    used=frozenset({
        "depth", "num_heads", "in_channels", "patch_size", "spatial_merge_size",
        "temporal_merge_size", "mlp_ratio", "embed_dim", "in_chans", "layer_norm_eps",
    }),
    harmless=frozenset({
        "attn_implementation", "attn_sep", "pp_data_balance", "vit_first_fwd_bsz",
        "vit_num_recompute_layers", "tensor_parallel_degree",
    }),
)  # fmt: skip


def check_other_keys(reader: ConfigReader, architecture: str, rules: KeyRules) -> None:
    """Refuse what would change a result, and warn once of what is not known.

    Raises:
        ConfigError: a key asks for something that is not supported.
    """
    neutral_values = {**_NEUTRAL_VALUES, **(rules.neutral or {})}
    known = _USED_KEYS | HARMLESS_KEYS | rules.used | rules.harmless
    unknown = []
    for key, value in reader.values.items():
        if value is None or key in known:
            continue
        if key == "auto_map":
            logger.warning("%s: auto_map names Python code; it is never imported", reader.file)
        elif key == "layer_types":
            kinds = value if isinstance(value, list) else [value]
            for kind in kinds:
                if kind != "full_attention":
                    raise reader.fail(key, "full_attention for every layer", kind)
        elif key in neutral_values:
            # bool == int in Python: compare the types as well.
            if not any(type(value) is type(v) and value == v for v in neutral_values[key]):
                neutral = ", ".join(dict.fromkeys(quoted(v) for v in (*neutral_values[key], None)))
                method = value.get("quant_method", value) if isinstance(value, dict) else value
                raise reader.fail(key, f"{neutral} (no other value is supported)", method)
        elif key.startswith(_DECISIVE_PREFIXES):
            method = value.get("quant_method", value) if isinstance(value, dict) else value
            raise reader.fail(quoted(key), f"no such key in an {architecture} checkpoint", method)
        else:
            unknown.append(quoted(key))
    if unknown:
        shown = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        logger.warning("%s: %d unknown keys ignored: %s", reader.file, len(unknown), shown)
