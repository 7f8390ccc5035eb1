"""Runs steps: prepares the batch, runs the model over the paged cache, computes logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ernie_kernels._core import Tensor, empty
from ernie_kernels.errors import InternalError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.layers import LayerKVCache, take
from ernie_kernels.models.memory_plan import kv_bytes_per_token
from ernie_kernels.models.model_weights import count_parameters
from ernie_kernels.models.mtp import SpeculativeConfig
from ernie_kernels.models.workspace import LayerBuffers, Workspace
from ernie_kernels.runner.batch import ForwardBatch, TokenSpan
from ernie_kernels.runner.decode_graph import DecodeSteps
from ernie_kernels.runner.speculation import Drafter
from ernie_kernels.runner.transfers import Download, Transfers

# Products of one call of the head that computes all rows of a prompt: Python hears Ctrl-C between
# two calls, so they may not take a second. Half of one at 10 Gflop/s; of ERNIE-4.5-0.3B 24 rows.
HEAD_PRODUCTS_PER_CALL = 2_600_000_000


def head_rows_per_call(config: ModelConfig) -> int:
    return max(1, HEAD_PRODUCTS_PER_CALL // (config.vocab_size * config.hidden_size))


def kv_cache_bytes_per_block(
    config: ModelConfig, block_size: int, dtype: str, *, with_mtp: bool = False
) -> int:
    """Bytes of one cache block over all layers, keys and values."""
    return block_size * kv_bytes_per_token(config, dtype, with_mtp=with_mtp)


class ModelRunner:
    """A model with its cache and the memory of a step.

    With drafts a GPU decodes without CUDA graphs: a step then has more rows than sequences, as many as
    there are drafts, and is followed by the module's own, whose rows are those that proved right.

    Args:
        transfers: of the device.
        max_tokens_per_step: rows that one call of :meth:`run` may have.
        max_num_seqs, max_model_len: sequences of a step, and tokens of one of them.
        num_blocks, block_size: of the paged cache.
        speculative: how to draft tokens with the model's multi-token prediction module, or None.
        first_vision_id: tokens from this id on ask the vision experts, generated ones too. None: those
            of a prompt that its plan names.

    Attributes:
        num_drafts: tokens drafted for a sequence in a step, at most.
        products_per_step: of the vision tower beside a step: about those of a step's tokens.
    """

    def __init__(
        self,
        model: ErnieForCausalLM,
        config: ModelConfig,
        *,
        transfers: Transfers,
        dtype: str,
        num_blocks: int,
        block_size: int,
        max_tokens_per_step: int,
        max_num_seqs: int,
        max_model_len: int,
        speculative: SpeculativeConfig | None = None,
        first_vision_id: int | None = None,
    ) -> None:
        self.model = model
        self.first_vision_id = first_vision_id
        self.device = device = transfers.device
        self.block_size = block_size
        self.max_tokens_per_step = max_tokens_per_step
        self.products_per_step = max_tokens_per_step * count_parameters(config).active
        self._vocab_size = config.vocab_size
        self._head_rows_per_call = head_rows_per_call(config)
        self._workspace = Workspace(
            config, max_tokens_per_step, dtype, device, expert_dtype=model.expert_dtype
        )
        self._logits = empty([0, config.vocab_size], "float32", device)
        shape = [num_blocks, config.num_key_value_heads, block_size, config.head_dim]
        # Pages of the cache come into being when they are first written to.
        self._kv_caches = [
            LayerKVCache(empty(shape, dtype, device), empty(shape, dtype, device))
            for _ in range(config.num_hidden_layers)
        ]
        self._transfers = transfers
        self._has_routers = any(plan.mlp == "moe" for plan in config.layers)
        self._flags = Download(transfers, "uint8", (max_tokens_per_step,))
        self._flagged_after = 0  # so many waits
        self.num_drafts = 0
        self._drafter: Drafter | None = None
        if speculative is not None and model.mtp is not None:
            self.num_drafts = speculative.num_speculative_tokens
            self._drafter = Drafter(
                model.mtp,
                config,
                speculative,
                LayerKVCache(empty(shape, dtype, device), empty(shape, dtype, device)),
                self._workspace,
                block_size=block_size,
                dtype=dtype,
                device=device,
            )
        self._decode_steps: DecodeSteps | None = None
        if device != "cpu" and self._drafter is None:
            self._decode_steps = DecodeSteps(
                model,
                self._kv_caches,
                self._workspace,
                config.vocab_size,
                transfers,
                max_num_seqs=max_num_seqs,
                max_seq_len=-(-max_model_len // block_size) * block_size,
                block_size=block_size,
            )

    def decode(self, spans: Sequence[TokenSpan]) -> Tensor | None:
        """One step in which every sequence has one new token, where the device has its own way.

        Returns:
            Logits of each span's next token: float32 ``[len(spans), vocab_size]``, valid until the
            next call. None, and nothing has run: on the CPU, or if a span has more tokens, wants no
            output, asks the vision experts or is of a prompt with images.
        """
        if self._decode_steps is None:
            return None
        if any(len(span.token_ids) != 1 or span.num_outputs != 1 for span in spans):
            return None
        # The graphs ask the text experts alone, and know neither features nor positions of images.
        if any(s.media is not None and s.start < len(s.media.plan.banks) for s in spans):
            return None
        first = self.first_vision_id
        if first is not None and any(span.token_ids[0] >= first for span in spans):
            return None
        logits, flags = self._decode_steps.logits(spans)
        self._keep(flags)
        return logits

    def run(self, spans: Sequence[TokenSpan]) -> Tensor:
        """One step over at most ``max_tokens_per_step`` tokens, at least one.

        Returns:
            Final hidden states of the tokens that the spans want them of, laid end to end:
            ``[num_outputs, hidden_size]``, valid until the next call.
        """
        batch = ForwardBatch.from_spans(spans, self.block_size, self.device, self.first_vision_id)
        buffers = self._workspace.rows(len(batch.input_ids))
        if self._drafter is None:
            hidden_states = self.model(batch, self._kv_caches, buffers)
        else:
            hidden_states = self._run_every_row(batch, buffers, self._drafter)
        self._keep(batch.flags)
        return hidden_states

    def _run_every_row(
        self, batch: ForwardBatch, buffers: LayerBuffers, drafter: Drafter
    ) -> Tensor:
        """As the model does, and let the module have the hidden states of all rows."""
        # A copy: what routers say of rows that would not have been computed is not to be heard.
        every_row = replace(batch, outputs=replace(batch.queries))
        hidden_states = self.model(every_row, self._kv_caches, buffers)
        drafter.keep(before_norm=buffers.residual, after_norm=hidden_states)
        rows = batch.outputs.rows
        return hidden_states if rows is None else take(rows, hidden_states)

    def draft(self, rows: np.ndarray, spans: Sequence[TokenSpan]) -> Tensor | None:
        """Run the multi-token prediction module behind :meth:`run`, or behind itself.

        Args:
            rows: int64, of each token of ``spans`` its row among all those of the last :meth:`run`,
                or among the logits that the last call of this method returned.
            spans: positions, each with the token of the next one.

        Returns:
            Logits where the spans want outputs: float32 ``[num_outputs, vocab_size]``, valid until
            the next call. None if nobody wants any.
        """
        if self._drafter is None:
            raise InternalError("runner: drafts of a model that has no module for them")
        hidden_states = self._drafter(rows, spans)
        return self.logits(hidden_states) if len(hidden_states) else None

    def _keep(self, flags: Tensor) -> None:
        if self._has_routers:
            self._flags.queue(flags)
            self._flagged_after = self._transfers.num_waits

    def flagged(self, spans: Sequence[TokenSpan]) -> list[tuple[int, int]]:
        """The tokens of the last step that a router could not choose experts for.

        Waits for the step, unless somebody has.

        Returns:
            Of each span that has such tokens, its index and the position of the first.
        """
        if not self._has_routers:
            return []
        if self._flagged_after == self._transfers.num_waits:
            self._transfers.wait()
        stops = np.cumsum([len(span.token_ids) for span in spans])
        found = np.flatnonzero(self._flags.array[: stops[-1]])
        indices, first = np.unique(np.searchsorted(stops, found, side="right"), return_index=True)
        return [
            (index, spans[index].stop - int(stops[index] - row))
            for index, row in zip(indices.tolist(), found[first].tolist(), strict=True)
        ]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of every row: float32 ``[num_rows, vocab_size]``, valid until the next call."""
        num_rows = len(hidden_states)
        if len(self._logits) < num_rows:
            self._logits = empty([num_rows, self._vocab_size], "float32", self.device)
        return self.model.logits(hidden_states, out=self._logits[:num_rows])

    def write_logits(self, hidden_states: Tensor, out: np.ndarray) -> None:
        """The same into a float32 numpy array ``[num_rows, vocab_size]``."""
        if self.device != "cpu":
            out[...] = self.model.logits(hidden_states).numpy()
            return
        # A row's bits do not depend on the others, so pieces make no difference to them.
        for begin in range(0, len(out), self._head_rows_per_call):
            rows = slice(begin, begin + self._head_rows_per_call)
            self.model.logits(hidden_states[rows], out=out[rows])
