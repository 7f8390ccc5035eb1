"""ERNIE-4.5, dense or with experts: the model as equations. Attribute names are the checkpoint's.

What it makes of images and videos is in :mod:`.ernie_vl`.

Projections that read the same input are fused into one matrix:

    self_attn.qkv_proj  = q_proj, k_proj, v_proj
    mlp.gate_up_proj    = gate_proj, up_proj        of every expert too
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor
from ernie_kernels.errors import UnsupportedError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.ernie_vl import VisualEncoder
from ernie_kernels.models.experts import MoE
from ernie_kernels.models.layers import MLP, DecoderLayer, Embedding, LayerKVCache
from ernie_kernels.models.loader import Checkpoint
from ernie_kernels.models.mtp import MultiTokenPredictor, check_has_module
from ernie_kernels.models.quantization import Quantization
from ernie_kernels.models.slices import all_at_once
from ernie_kernels.models.weight_specs import EMBEDDING, HEAD, mtp_specs, weight_specs
from ernie_kernels.models.weights import WeightReader
from ernie_kernels.vision.settings import VisionSettings

if TYPE_CHECKING:
    from ernie_kernels.models.workspace import LayerBuffers
    from ernie_kernels.runner.batch import ForwardBatch
    from ernie_kernels.vision.item import VisualItem


class ErnieDecoder:
    """Embedding, decoder layers and final norm: token ids to hidden states."""

    def __init__(self, config: ModelConfig, weights: WeightReader, embed_tokens: Embedding) -> None:
        self.embed_tokens = embed_tokens
        self.layers = []
        for index, plan in enumerate(config.layers):
            name = f"model.layers.{index}"
            is_moe = plan.mlp == "moe"
            mlp = (
                MoE(config, weights, f"{name}.mlp", plan) if is_moe else MLP(weights, f"{name}.mlp")
            )
            self.layers.append(DecoderLayer(config, weights, name, mlp))
        self.norm = weights.norm("model.norm")
        self._config = config

    def __call__(
        self, batch: ForwardBatch, kv_caches: list[LayerKVCache], buffers: LayerBuffers
    ) -> Tensor:
        residual = self.embed(batch, out=buffers.residual)
        self.write_rope_table(batch, out=buffers.rope_table)
        hidden_states = None
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            # Nothing reads what the last layer makes of rows that are not wanted.
            queries = batch.outputs if layer is self.layers[-1] else batch.queries
            hidden_states, residual = layer(
                hidden_states, residual, batch, kv_cache, buffers, queries
            )
        hidden_states, _ = self.norm.add(hidden_states, residual)
        return hidden_states

    def embed(self, batch: ForwardBatch, *, out: Tensor) -> Tensor:
        """``[num_tokens, hidden_size]``: rows of the table, and of images and videos their features."""
        self.embed_tokens(batch.input_ids, out=out)
        if batch.visual_rows is not None and batch.visual_features is not None:
            ops.scatter_rows(batch.visual_features, batch.visual_rows, out)
        return out

    def write_rope_table(self, batch: ForwardBatch, *, out: Tensor) -> None:
        """Of every token's position, of one number or of three: ``[num_tokens, head_dim]`` float32."""
        config = self._config
        if batch.mrope_positions is None:
            ops.rope_table(batch.positions, config.head_dim, theta=config.rope_theta, out=out)
            return
        ops.mrope_table(
            batch.mrope_positions,
            config.head_dim,
            theta=config.rope_theta,
            freq_allocation=config.freq_allocation,
            out=out,
        )


class ErnieForCausalLM:
    """The ERNIE-4.5 text model with its language-model head.

    Args:
        config: of the checkpoint.
        checkpoint: open; read and checked against ``config`` here.
        device: ``"cpu"`` or ``"cuda:N"``.
        dtype: of activations, ``"float32"`` or ``"bfloat16"``.
        weight_dtype: of matrices; a float32 matrix needs float32 activations.
        quantization: of projections and head, and of experts; None: as they are stored.
        with_mtp: read the multi-token prediction module too.
        levels: float32 ``[3, 256]``: what each level of each channel of pixels becomes; None: as in
            every released model. For a vision tower.

    Attributes:
        mtp: that module, or None.
        expert_dtype: in which experts lie in memory, where the model has any.
        visual: vision tower and resampler, or None in a model of text alone.
        nbytes, mtp_nbytes, visual_nbytes: bytes of all weights, and among them of the module's, and of
            the tower's and the resampler's.

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
        quantization: Quantization | str | None = None,
        with_mtp: bool = False,
        levels: np.ndarray | None = None,
    ) -> None:
        if with_mtp:
            check_has_module(checkpoint)
        # A head may be stored beside a config that says "tied"; then the stored one counts.
        optional = [HEAD] if config.tie_word_embeddings else []
        specs = weight_specs(config) | (mtp_specs(config) if with_mtp else {})
        checkpoint.require(specs, optional=optional)
        rounding = Quantization.of(quantization)
        self.expert_dtype = rounding.expert_dtype(weight_dtype)
        weights = WeightReader(
            config,
            checkpoint,
            device=device,
            dtype=dtype,
            weight_dtype=weight_dtype,
            quantization=rounding,
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
        without_mtp = weights.nbytes
        self.mtp = MultiTokenPredictor(config, weights, self.model) if with_mtp else None
        self.mtp_nbytes = weights.nbytes - without_mtp
        without_visual = weights.nbytes
        self.visual = None
        if config.vision is not None:
            self.visual = VisualEncoder(
                config,
                config.vision,
                weights,
                VisionSettings().levels() if levels is None else levels,
                device=device,
                dtype=dtype,
            )
        self.visual_nbytes = weights.nbytes - without_visual
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

    def visual_features(self, items: Sequence[VisualItem]) -> Tensor:
        """Rows for the embedding of a prompt, ``[sum of num_tokens, hidden_size]``.

        Those of the items one after the other; in pieces of bounded memory, and on the CPU each
        item's to the same bits whatever else is encoded with it.

        Raises:
            UnsupportedError: the model has no vision tower.
        """
        return all_at_once(self.visual_slices(items))

    def visual_slices(self, items: Sequence[VisualItem]) -> Generator[int, None, Tensor]:
        """The same slice by slice, as :meth:`.VisualEncoder.slices`."""
        if self.visual is None:
            raise UnsupportedError(
                "visual_features: this model is of text alone; load an ERNIE-4.5-VL checkpoint"
            )
        return self.visual.slices(items)

    def logits(self, hidden_states: Tensor, *, out: Tensor | None = None) -> Tensor:
        """``[num_rows, hidden_size]`` to float32 ``[num_rows, vocab_size]``."""
        return self.lm_head(hidden_states, out=out, dtype="float32" if out is None else None)
