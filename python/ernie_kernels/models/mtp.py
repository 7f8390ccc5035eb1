"""Multi-token prediction: from a position's hidden state and the token after it, the one after that.

    e = rms(E[token i+1], mtp_emb_norm);  g = rms(hidden i, mtp_hidden_norm)
    u = mtp_block(concat(e, g) @ mtp_linear_proj.T)    an ordinary dense decoder layer, at position i
    logits for token i+2 = head(rms(u, model.norm))    norm and head are the model's own

The block attends to the positions before, in a cache of its own. Hidden states are those before the
model's final norm, as in Baidu's training code, or after it, as other engines have it: which of them
the published weights want is not documented, and the rate of right guesses tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ernie_kernels import ops
from ernie_kernels._core import Tensor
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.layers import MLP, DecoderLayer
from ernie_kernels.models.loader import Checkpoint
from ernie_kernels.models.weight_specs import (
    MTP_BLOCK,
    MTP_EMB_NORM,
    MTP_HIDDEN_NORM,
    MTP_LINEAR_PROJ,
)

if TYPE_CHECKING:
    from ernie_kernels.models.config import ModelConfig
    from ernie_kernels.models.ernie import ErnieDecoder
    from ernie_kernels.models.layers import LayerKVCache
    from ernie_kernels.models.weights import WeightReader
    from ernie_kernels.models.workspace import LayerBuffers
    from ernie_kernels.runner.batch import ForwardBatch

BEFORE_NORM, AFTER_NORM = "before_norm", "after_norm"
HIDDEN_STATES = (BEFORE_NORM, AFTER_NORM)


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How to guess tokens ahead: ``speculative_config`` of :meth:`LLM.from_pretrained`, checked."""

    num_speculative_tokens: int = 1
    hidden_state: str = BEFORE_NORM  # one of HIDDEN_STATES: what the module reads


def check_has_module(checkpoint: Checkpoint) -> None:
    """Raises ConfigError where there is none at all; half of one is a matter of ``require``."""
    names = (f"{MTP_EMB_NORM}.weight", f"{MTP_HIDDEN_NORM}.weight", MTP_LINEAR_PROJ)
    if not any(name in checkpoint for name in names):
        raise ConfigError(
            f"speculative_config: method mtp needs the multi-token prediction module, and the "
            f"checkpoint has none ({MTP_LINEAR_PROJ} and eleven more tensors); leave speculative_config "
            "out"
        )


class MultiTokenPredictor:
    """The module, with the embedding and the final norm of the model that it belongs to."""

    def __init__(self, config: ModelConfig, weights: WeightReader, decoder: ErnieDecoder) -> None:
        self.emb_norm = weights.norm(MTP_EMB_NORM)
        self.hidden_norm = weights.norm(MTP_HIDDEN_NORM)
        self.linear_proj = weights.head(weights.matrix(MTP_LINEAR_PROJ))
        self.block = DecoderLayer(config, weights, MTP_BLOCK, MLP(weights, f"{MTP_BLOCK}.mlp"))
        self._decoder = decoder
        self._config = config

    def __call__(
        self,
        hidden_states: Tensor,
        batch: ForwardBatch,
        kv_cache: LayerKVCache,
        buffers: LayerBuffers,
        joined: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the module over some positions.

        Args:
            hidden_states: the model's, at the positions of the batch: ``[num_tokens, hidden_size]``;
                none of ``buffers``. Behind the last position that the model has run, the module's.
            batch: whose ``input_ids`` are of one position further on.
            joined: ``[num_tokens, 2 * hidden_size]``, written.

        Returns:
            Hidden states of the rows in ``batch.outputs``, after the final norm and before it:
            ``[num_outputs, hidden_size]`` each, in ``buffers``.
        """
        config = self._config
        embedded, carried = joined[:, : config.hidden_size], joined[:, config.hidden_size :]
        self._decoder.embed_tokens(batch.input_ids, out=embedded)
        self.emb_norm(embedded, out=embedded)
        self.hidden_norm(hidden_states, out=carried)
        residual = self.linear_proj(joined, out=buffers.residual)
        ops.rope_table(
            batch.positions, config.head_dim, theta=config.rope_theta, out=buffers.rope_table
        )
        output, residual = self.block(None, residual, batch, kv_cache, buffers, batch.outputs)
        return self._decoder.norm.add(output, residual)
