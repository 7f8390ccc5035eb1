"""ERNIE-4.5, dense: the model as equations. Attribute names are the checkpoint's.

Projections that read the same input are fused into one matrix:

    self_attn.qkv_proj  = q_proj, k_proj, v_proj
    mlp.gate_up_proj    = gate_proj, up_proj
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_kernels import ops
from ernie_kernels._core import Tensor
from ernie_kernels.models import mtp
from ernie_kernels.models.config import LayerPlan, ModelConfig
from ernie_kernels.models.layers import DecoderLayer, Embedding, LayerKVCache
from ernie_kernels.models.loader import Checkpoint, WeightSpec
from ernie_kernels.models.weights import WeightReader

if TYPE_CHECKING:
    from ernie_kernels.models.workspace import LayerBuffers
    from ernie_kernels.runner.batch import ForwardBatch

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def weight_specs(config: ModelConfig, *, with_mtp: bool = False) -> dict[str, WeightSpec]:
    """Every tensor of the model: its Hugging Face name and shape; or of its MTP module too."""
    hidden = (config.hidden_size, "hidden_size")
    vocab = (config.vocab_size, "vocab_size")
    query = (config.num_attention_heads * config.head_dim, "num_attention_heads", "head_dim")
    key = (config.num_key_value_heads * config.head_dim, "num_key_value_heads", "head_dim")

    def spec(*extents: tuple) -> WeightSpec:
        keys = dict.fromkeys(key for extent in extents for key in extent[1:])
        return WeightSpec(tuple(extent[0] for extent in extents), tuple(keys))

    specs = {
        EMBEDDING: spec(vocab, hidden),
        "model.norm.weight": spec(hidden),
        HEAD: spec(vocab, hidden),
    }
    layers = [(f"model.layers.{index}", plan) for index, plan in enumerate(config.layers)]
    if with_mtp:
        specs |= mtp.module_specs(config)
        layers.append((mtp.BLOCK, LayerPlan("dense", config.intermediate_size)))
    for layer, plan in layers:
        specs[f"{layer}.input_layernorm.weight"] = spec(hidden)
        specs[f"{layer}.post_attention_layernorm.weight"] = spec(hidden)
        width = (plan.intermediate_size, "intermediate_size")
        projections = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (width, hidden),
            "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width),
        }
        for name, (out_features, in_features) in projections.items():
            specs[f"{layer}.{name}.weight"] = spec(out_features, in_features)
            if config.use_bias:
                specs[f"{layer}.{name}.bias"] = spec(out_features)
    return specs


class ErnieDecoder:
    """Embedding, decoder layers and final norm: token ids to hidden states."""

    def __init__(self, config: ModelConfig, weights: WeightReader, embed_tokens: Embedding) -> None:
        self.embed_tokens = embed_tokens
        self.layers = [
            DecoderLayer(config, weights, f"model.layers.{index}")
            for index in range(config.num_hidden_layers)
        ]
        self.norm = weights.norm("model.norm")
        self._config = config

    def __call__(
        self, batch: ForwardBatch, kv_caches: list[LayerKVCache], buffers: LayerBuffers
    ) -> Tensor:
        config = self._config
        residual = self.embed_tokens(batch.input_ids, out=buffers.residual)
        ops.rope_table(
            batch.positions, config.head_dim, theta=config.rope_theta, out=buffers.rope_table
        )
        hidden_states = None
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            # Nothing reads what the last layer makes of rows that are not wanted.
            queries = batch.outputs if layer is self.layers[-1] else batch.queries
            hidden_states, residual = layer(
                hidden_states, residual, batch, kv_cache, buffers, queries
            )
        hidden_states, _ = self.norm.add(hidden_states, residual)
        return hidden_states


class ErnieForCausalLM:
    """The dense ERNIE-4.5 model with its language-model head.

    Args:
        config: of the checkpoint.
        checkpoint: open; read and checked against ``config`` here.
        device: ``"cpu"`` or ``"cuda:N"``.
        dtype: of activations, ``"float32"`` or ``"bfloat16"``.
        weight_dtype: of matrices; a float32 matrix needs float32 activations.
        quantization: of projections and head, ``"wint8"``, ``"w8a8"`` or None.
        with_mtp: read the multi-token prediction module too.

    Attributes:
        mtp: that module, or None.
        nbytes: bytes of all weights.

    Raises:
        ConfigError: ``with_mtp``, and the checkpoint has no such module.
        WeightError: a tensor is missing, unexpected, of the wrong shape or dtype, or not finite.
        FormatError: a file cannot be read.
        OutOfMemoryError: not enough memory for the weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        device: str,
        dtype: str,
        weight_dtype: str,
        quantization: str | None = None,
        with_mtp: bool = False,
    ) -> None:
        if with_mtp:
            mtp.check_has_module(checkpoint)
        # A head may be stored beside a config that says "tied"; then the stored one counts.
        optional = [HEAD] if config.tie_word_embeddings else []
        checkpoint.require(weight_specs(config, with_mtp=with_mtp), optional=optional)
        weights = WeightReader(
            config,
            checkpoint,
            device=device,
            dtype=dtype,
            weight_dtype=weight_dtype,
            quantization=quantization,
        )
        # One copy serves as embedding and head where the two are equal.
        table = weights.matrix(EMBEDDING)
        is_tied = HEAD not in checkpoint or checkpoint.equals(HEAD, table)
        if is_tied:
            self.lm_head = weights.head(table)
            embed_tokens = weights.embedding_of(self.lm_head)
        else:
            embed_tokens = weights.embedding(table)
        del table
        self.model = ErnieDecoder(config, weights, embed_tokens)
        if not is_tied:
            self.lm_head = weights.head(weights.matrix(HEAD))
        self.mtp = mtp.MultiTokenPredictor(config, weights, self.model) if with_mtp else None
        self.is_tied = is_tied
        self.nbytes = weights.nbytes

    def __call__(
        self, batch: ForwardBatch, kv_caches: list[LayerKVCache], buffers: LayerBuffers
    ) -> Tensor:
        """Run one step.

        Returns:
            Hidden states after the final norm of the rows in ``batch.outputs``,
            ``[num_outputs, hidden_size]``, in ``buffers``; the caches hold the step's keys and
            values. Where these are all rows of the batch, ``buffers.residual`` holds the same before
            the norm.
        """
        return self.model(batch, kv_caches, buffers)

    def logits(self, hidden_states: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``[num_rows, hidden_size]`` to float32 ``[num_rows, vocab_size]``."""
        return self.lm_head(hidden_states, out=out, dtype="float32" if out is None else None)
