"""What tensors a model has, by their Hugging Face names."""

from __future__ import annotations

from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layer_plan import LayerPlan
from ernie_kernels.models.vision_weight_specs import vision_specs
from ernie_kernels.models.weight_spec import Extent, WeightSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Of the multi-token prediction module (mtp.py). Its block is a dense layer in every model.
MTP_EMB_NORM = "model.mtp_emb_norm.0"
MTP_HIDDEN_NORM = "model.mtp_hidden_norm.0"
MTP_LINEAR_PROJ = "model.mtp_linear_proj.0.weight"
MTP_BLOCK = "model.mtp_block.0"


def weight_specs(config: ModelConfig) -> dict[str, WeightSpec]:
    """Every tensor of the model: its Hugging Face name and shape."""
    hidden: Extent = (config.hidden_size, ("hidden_size",))
    vocab: Extent = (config.vocab_size, ("vocab_size",))
    specs = {
        EMBEDDING: WeightSpec.of(vocab, hidden),
        "model.norm.weight": WeightSpec.of(hidden),
        HEAD: WeightSpec.of(vocab, hidden),
    }
    for index, plan in enumerate(config.layers):
        specs |= _layer(config, f"model.layers.{index}", plan, hidden)
    if config.vision is not None:
        specs |= vision_specs(config.vision, hidden)
    return specs


def mtp_specs(config: ModelConfig) -> dict[str, WeightSpec]:
    """Those of the multi-token prediction module. Some files hold its projection transposed."""
    hidden: Extent = (config.hidden_size, ("hidden_size",))
    joined: Extent = (2 * config.hidden_size, ("hidden_size",))
    block = LayerPlan(mlp="dense", intermediate_size=config.intermediate_size)
    return {
        f"{MTP_EMB_NORM}.weight": WeightSpec.of(hidden),
        f"{MTP_HIDDEN_NORM}.weight": WeightSpec.of(hidden),
        MTP_LINEAR_PROJ: WeightSpec.of(hidden, joined, either_way=True),
        **_layer(config, MTP_BLOCK, block, hidden),
    }


def _layer(
    config: ModelConfig, layer: str, plan: LayerPlan, hidden: Extent
) -> dict[str, WeightSpec]:
    specs = {
        f"{layer}.input_layernorm.weight": WeightSpec.of(hidden),
        f"{layer}.post_attention_layernorm.weight": WeightSpec.of(hidden),
    }
    linears = {**_attention(config, f"{layer}.self_attn", hidden)}
    if plan.mlp == "moe":
        specs |= _router(plan, f"{layer}.mlp", hidden)
        linears |= _experts(plan, f"{layer}.mlp", hidden)
    else:
        width = (plan.intermediate_size, ("intermediate_size",))
        linears |= _mlp(f"{layer}.mlp", width, hidden)
    for name, (out_features, in_features) in linears.items():
        specs[f"{name}.weight"] = WeightSpec.of(out_features, in_features)
        if config.use_bias:
            specs[f"{name}.bias"] = WeightSpec.of(out_features)
    return specs


Linears = dict[str, tuple[Extent, Extent]]  # name: out_features and in_features


def _attention(config: ModelConfig, name: str, hidden: Extent) -> Linears:
    query = (
        config.num_attention_heads * config.head_dim,
        ("num_attention_heads", "head_dim"),
    )
    key = (config.num_key_value_heads * config.head_dim, ("num_key_value_heads", "head_dim"))
    return {
        f"{name}.q_proj": (query, hidden),
        f"{name}.k_proj": (key, hidden),
        f"{name}.v_proj": (key, hidden),
        f"{name}.o_proj": (hidden, query),
    }


def _mlp(name: str, width: Extent, hidden: Extent) -> Linears:
    return {
        f"{name}.gate_proj": (width, hidden),
        f"{name}.up_proj": (width, hidden),
        f"{name}.down_proj": (hidden, width),
    }


def router_names(name: str, num_banks: int) -> list[str]:
    """The router of each bank of experts."""
    return [f"{name}.gate.weight", f"{name}.gate.weight_1"][:num_banks]


def _router(plan: LayerPlan, name: str, hidden: Extent) -> dict[str, WeightSpec]:
    """Text models store a gate as ``[num_experts, hidden_size]``, others transposed."""
    count: Extent = (plan.num_experts, ("moe_num_experts",))
    num_banks = len(plan.bank_widths)
    gate = WeightSpec.of(count, hidden, either_way=True, transposed=num_banks > 1)
    return {
        **dict.fromkeys(router_names(name, num_banks), gate),
        f"{name}.moe_statics.e_score_correction_bias": WeightSpec.of((num_banks, ()), count),
    }


def _experts(plan: LayerPlan, name: str, hidden: Extent) -> Linears:
    linears: Linears = {}
    # The banks one after the other, numbered through.
    for bank, size in enumerate(plan.bank_widths):
        width = (size, ("moe_intermediate_size",))
        for index in range(bank * plan.num_experts, (bank + 1) * plan.num_experts):
            linears |= _mlp(f"{name}.experts.{index}", width, hidden)
    if plan.shared_intermediate_size:
        keys = ("moe_num_shared_experts", "moe_intermediate_size")
        linears |= _mlp(f"{name}.shared_experts", (plan.shared_intermediate_size, keys), hidden)
    return linears
