"""The configuration of a checkpoint: ``config.json`` and ``generation_config.json``.

A model variant is data: a row of :mod:`.architectures` that turns the file into one plan per layer.
Every key is either used, known to change nothing, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.architectures import find_architecture
from ernie_kernels.models.config_keys import check_other_keys
from ernie_kernels.models.config_reader import ConfigReader
from ernie_kernels.models.layer_plan import LayerPlan, num_mtp_layers
from ernie_kernels.models.rope_config import freq_allocation, rope_theta, rope_theta_3d
from ernie_kernels.models.vision_config import (
    MediaTokens,
    VisionConfig,
    media_tokens,
    vision_config,
    with_text_config,
)

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

DTYPES = ("bfloat16", "float16", "float32")
ACTIVATIONS = ("silu",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checked configuration. Field names are those of ``config.json`` where it has them."""

    architecture: str  # a name of architectures.ARCHITECTURES
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
    # Of the layers with experts; 0 where there are none.
    num_experts: int
    top_k: int  # experts that a token takes
    moe_intermediate_size: int  # width of one expert
    num_shared_experts: int  # they are one MLP of so many times that width
    norm_min: float  # least sum that the weights of a token's experts are divided by
    correction_bias: bool  # the checkpoint has an e_score_correction_bias beside every router
    num_nextn_predict_layers: int  # multi-token prediction modules in the checkpoint
    # Of a vision-language model; None, and 0, in one of text alone.
    vision: VisionConfig | None = None
    media_tokens: MediaTokens | None = None
    freq_allocation: int = 0  # pairs of the rotary embedding that turn with time


# --------------------------------------------------------------------------------------- the file


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
    ``tie_word_embeddings`` true, ``use_bias`` false, ``moe_layer_interval`` 1,
    ``moe_layer_end_index`` -1, ``moe_norm_min`` 1e-12; ``moe_num_shared_experts`` means 0.
    ``num_key_value_heads: null`` means as many as ``num_attention_heads``. Token ids come from
    ``generation_config.json``, then ``config.json``; absent means none.

    Raises:
        ConfigError: a file is malformed, or a key is missing, of the wrong type, out of range,
            contradictory, or asks for something that would change the result and is not supported.
    """
    folder = Path(folder)
    reader = ConfigReader(read_json(folder / CONFIG_FILE), CONFIG_FILE)
    generation = None
    if (folder / GENERATION_CONFIG_FILE).exists():
        values = read_json(folder / GENERATION_CONFIG_FILE)
        generation = ConfigReader(values, GENERATION_CONFIG_FILE)
    return _checked(reader, generation)


def load_config_file(path: Path) -> ModelConfig:
    """The same of one file of any name, whatever lies beside it."""
    return _checked(ConfigReader(read_json(path), quoted(path.name)), None)


def _checked(reader: ConfigReader, generation: ConfigReader | None) -> ModelConfig:
    architecture = find_architecture(reader)
    has_vision = architecture.has_vision
    if has_vision:
        reader = with_text_config(reader)
    check_other_keys(reader, architecture.name, architecture.keys)
    layers, experts = architecture.layers(reader)
    vocab_size = reader.size("vocab_size")
    heads = reader.size("num_attention_heads")
    kv_heads_is_null = "num_key_value_heads" in reader.values
    head_dim = _head_dim(reader)

    def source(key: str) -> ConfigReader:
        if generation is None or generation.values.get(key) is None:
            return reader
        return generation

    config = ModelConfig(
        architecture=architecture.name,
        vocab_size=vocab_size,
        hidden_size=reader.size("hidden_size"),
        intermediate_size=reader.size("intermediate_size"),
        num_hidden_layers=reader.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=reader.size(
            "num_key_value_heads", default=heads if kv_heads_is_null else None
        ),
        head_dim=head_dim,
        hidden_act=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        max_position_embeddings=reader.size("max_position_embeddings", default=131072),
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-5),
        rope_theta=rope_theta_3d(reader) if has_vision else rope_theta(reader),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", True),
        use_bias=reader.boolean("use_bias", False),
        dtype=_dtype(reader),
        bos_token_id=source("bos_token_id").token_id("bos_token_id", vocab_size),
        eos_token_ids=source("eos_token_id").token_ids("eos_token_id", vocab_size),
        pad_token_id=source("pad_token_id").token_id("pad_token_id", vocab_size),
        layers=layers,
        num_experts=experts.num_experts,
        top_k=experts.top_k,
        moe_intermediate_size=experts.moe_intermediate_size,
        num_shared_experts=experts.num_shared_experts,
        norm_min=experts.norm_min,
        correction_bias=experts.num_experts > 0,
        num_nextn_predict_layers=num_mtp_layers(reader),
        vision=vision_config(reader) if has_vision else None,
        media_tokens=media_tokens(reader, vocab_size) if has_vision else None,
        freq_allocation=freq_allocation(reader, head_dim) if has_vision else 0,
    )
    _check_relations(config, reader.file)
    return config
