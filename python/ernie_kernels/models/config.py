"""The configuration of a checkpoint: ``config.json`` and ``generation_config.json``.

A model variant is data: a row of ``ARCHITECTURES`` that turns the file into one plan per layer.
Every key is either used, known to change nothing, or refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_reader import SIZE_RANGES, ConfigReader

logger = logging.getLogger("ernie_kernels")

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

DTYPES = ("bfloat16", "float16", "float32")
ACTIVATIONS = ("silu",)
ROPE_TYPES = ("default",)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one decoder layer is made of; attention is the same in all."""

    mlp: Literal["dense", "moe"]
    intermediate_size: int  # width of the dense MLP, or of one expert


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checked configuration. Field names are those of ``config.json`` where it has them."""

    architecture: str  # a name of ARCHITECTURES
    vocab_size: int  # rows of the embedding; the tokenizer may have fewer entries
    hidden_size: int
    intermediate_size: int  # of the dense MLP
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # even; num_attention_heads * head_dim may differ from hidden_size
    hidden_act: str
    max_position_embeddings: int  # tokens
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool  # as the file says; a stored lm_head that differs still wins
    use_bias: bool  # a bias on q, k, v, o, gate, up and down projections
    dtype: str | None  # of the stored weights: one of DTYPES; None when the file does not say
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # generation ends at any of these; may be empty
    pad_token_id: int | None
    layers: tuple[LayerPlan, ...]  # one per decoder layer


# ---------------------------------------------------------------------------------- architectures


def _dense_layers(reader: ConfigReader) -> tuple[LayerPlan, ...]:
    plan = LayerPlan(mlp="dense", intermediate_size=reader.size("intermediate_size"))
    return (plan,) * reader.size("num_hidden_layers")


LayerPlanner = Callable[[ConfigReader], tuple[LayerPlan, ...]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model variant: the names that select it, and how its layers follow from the file.

    ``layers`` is None for a variant that is known but that this version cannot run.
    """

    name: str
    class_names: tuple[str, ...]  # as in "architectures"
    model_types: tuple[str, ...]
    layers: LayerPlanner | None


# Each class has two spellings: that of transformers and that of Baidu's own files.
ARCHITECTURES = (
    Architecture(
        "ernie4_5",
        ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        ("ernie4_5",),
        _dense_layers,
    ),
    Architecture(
        "ernie4_5_moe",
        ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"),
        ("ernie4_5_moe",),
        None,
    ),
    Architecture(
        "ernie4_5_vl_moe",
        (
            "Ernie4_5_VLMoeForConditionalGeneration",
            "Ernie4_5_VL_MoeForConditionalGeneration",
            "Ernie4_5_VLMoEForConditionalGeneration",
        ),
        ("ernie4_5_vl_moe", "ernie4_5_moe_vl"),
        None,
    ),
)


def _find_architecture(reader: ConfigReader) -> tuple[str, LayerPlanner]:
    by_class = {name: row for row in ARCHITECTURES for name in row.class_names}
    by_type = {name: row for row in ARCHITECTURES for name in row.model_types}
    supported = ", ".join(name for row in ARCHITECTURES if row.layers for name in row.class_names)

    classes, model_type = reader.values.get("architectures"), reader.values.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise reader.fail("model_type", "a string", model_type)
    if classes is not None:
        if not isinstance(classes, list) or len(classes) != 1 or not isinstance(classes[0], str):
            raise reader.fail("architectures", "a list of one class name", classes)
        if classes[0] not in by_class:
            raise reader.fail("architectures", f"one of {supported}", classes[0])
        found = by_class[classes[0]]
        # A model_type that names no known variant is redundant beside the class; one that names
        # another variant is a contradiction.
        if by_type.get(model_type or "", found) is not found:
            raise ConfigError(
                f"{reader.file}: architectures is {quoted(classes[0])} but model_type is "
                f"{quoted(model_type)}, another model; correct one of them"
            )
    elif model_type is not None:
        if model_type not in by_type:
            types = ", ".join(t for row in ARCHITECTURES if row.layers for t in row.model_types)
            raise reader.fail("model_type", f"one of {types}", model_type)
        found = by_type[model_type]
    else:
        raise ConfigError(
            f"{reader.file}: architectures: missing, and model_type too; expected one of {supported}"
        )
    if found.layers is None:
        raise ConfigError(
            f"{reader.file}: architecture {found.name} is known but this version cannot run it; "
            f"it runs {supported}"
        )
    return found.name, found.layers


# -------------------------------------------------------------------------------- the other keys

# Read by load_config or one of its parts.
_USED_KEYS = frozenset(SIZE_RANGES) | {
    "architectures", "model_type", "hidden_act", "rms_norm_eps", "rope_theta", "rope_parameters",
    "rope_scaling", "tie_word_embeddings", "use_bias", "dtype", "torch_dtype", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip

# Bookkeeping, training and back-end switches that every released file may carry: no effect here.
_HARMLESS_KEYS = frozenset({
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
    "num_nextn_predict_layers": (0,),
    "multi_token_pred_depth": (0,),
    "moe_num_experts": (0,),
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


def _check_other_keys(reader: ConfigReader, architecture: str) -> None:
    unknown = []
    for key, value in reader.values.items():
        if value is None or key in _USED_KEYS or key in _HARMLESS_KEYS:
            continue
        if key == "auto_map":
            logger.warning("%s: auto_map names Python code; it is never imported", reader.file)
        elif key == "layer_types":
            kinds = value if isinstance(value, list) else [value]
            for kind in kinds:
                if kind != "full_attention":
                    raise reader.fail(key, "full_attention for every layer", kind)
        elif key in _NEUTRAL_VALUES:
            # bool == int in Python: compare the types as well.
            if not any(type(value) is type(v) and value == v for v in _NEUTRAL_VALUES[key]):
                neutral = ", ".join(dict.fromkeys(quoted(v) for v in (*_NEUTRAL_VALUES[key], None)))
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


def _rope_theta(reader: ConfigReader) -> float:
    """The rotary base, from ``rope_theta`` or the nested spelling of transformers 5.

    Scaling of any kind is refused, in ``rope_parameters`` and in the older ``rope_scaling``.
    """
    values = dict(reader.values)
    nested_theta = None
    for key in ("rope_parameters", "rope_scaling"):
        nested = values.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise reader.fail(key, "an object or null", nested)
        inner = ConfigReader(nested, f"{reader.file}: {key}")
        for name in ("rope_type", "type"):
            inner.choice(name, ROPE_TYPES, "default")
        for name, value in nested.items():
            if name == "rope_theta":
                nested_theta = inner.positive(name, 0.0)
            elif name == "partial_rotary_factor":
                if type(value) not in (int, float) or value != 1:
                    raise inner.fail(name, "1.0", value)
            elif name not in ("rope_type", "type"):
                raise inner.fail(quoted(name), "no such key for rope_type default", value)
    # 500000 is what every released ERNIE-4.5 uses and the documented default of transformers.
    theta = reader.positive("rope_theta", 500000.0 if nested_theta is None else nested_theta)
    if nested_theta is not None and theta != nested_theta:
        raise ConfigError(
            f"{reader.file}: rope_theta is {theta!r} but the nested rope_theta is "
            f"{nested_theta!r}; remove one of them"
        )
    return theta


def _dtype(reader: ConfigReader) -> str | None:
    names = {
        reader.choice(key, DTYPES, DTYPES[0])
        for key in ("dtype", "torch_dtype")
        if reader.values.get(key) is not None
    }
    if len(names) > 1:
        raise ConfigError(f"{reader.file}: dtype and torch_dtype differ; remove one of them")
    return next(iter(names), None)


def _check_relations(config: ModelConfig, file: str) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ConfigError(
            f"{file}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    if config.head_dim % 2:
        raise ConfigError(
            f"{file}: head_dim={config.head_dim}: expected an even number, rotary positions turn pairs"
        )


def _head_dim(reader: ConfigReader) -> int:
    # transformers' class default of 128 fits the released models only; an absent head_dim means
    # hidden_size / num_attention_heads, as in Baidu's own converter.
    if reader.values.get("head_dim") is not None:
        return reader.size("head_dim")
    hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if hidden % heads:
        raise ConfigError(
            f"{reader.file}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; "
            "add head_dim if that is meant"
        )
    return reader.size("head_dim", default=hidden // heads)


def load_config(folder: Path) -> ModelConfig:
    """Read and check the configuration of the checkpoint in ``folder``.

    The sizes must be in the file. These keys may be absent, with the value that every released
    ERNIE-4.5 has and that transformers documents as its default: ``hidden_act`` silu,
    ``max_position_embeddings`` 131072, ``rms_norm_eps`` 1e-5, ``rope_theta`` 500000,
    ``tie_word_embeddings`` true, ``use_bias`` false. ``num_key_value_heads: null`` means as many
    as ``num_attention_heads``. Token ids come from ``generation_config.json``, then
    ``config.json``; absent means none.

    Raises:
        ConfigError: a file is malformed, or a key is missing, of the wrong type, out of range,
            contradictory, or asks for something that would change the result and is not supported.
    """
    folder = Path(folder)
    reader = ConfigReader(read_json(folder / CONFIG_FILE), CONFIG_FILE)
    architecture, plan_layers = _find_architecture(reader)
    _check_other_keys(reader, architecture)

    vocab_size = reader.size("vocab_size")
    heads = reader.size("num_attention_heads")
    kv_heads_is_null = "num_key_value_heads" in reader.values
    generation = reader
    if (folder / GENERATION_CONFIG_FILE).exists():
        values = read_json(folder / GENERATION_CONFIG_FILE)
        generation = ConfigReader(values, GENERATION_CONFIG_FILE)

    def source(key: str) -> ConfigReader:
        return generation if generation.values.get(key) is not None else reader

    config = ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=reader.size("hidden_size"),
        intermediate_size=reader.size("intermediate_size"),
        num_hidden_layers=reader.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=reader.size(
            "num_key_value_heads", default=heads if kv_heads_is_null else None
        ),
        head_dim=_head_dim(reader),
        hidden_act=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        max_position_embeddings=reader.size("max_position_embeddings", default=131072),
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-5),
        rope_theta=_rope_theta(reader),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", True),
        use_bias=reader.boolean("use_bias", False),
        dtype=_dtype(reader),
        bos_token_id=source("bos_token_id").token_id("bos_token_id", vocab_size),
        eos_token_ids=source("eos_token_id").token_ids("eos_token_id", vocab_size),
        pad_token_id=source("pad_token_id").token_id("pad_token_id", vocab_size),
        layers=plan_layers(reader),
    )
    _check_relations(config, CONFIG_FILE)
    return config
