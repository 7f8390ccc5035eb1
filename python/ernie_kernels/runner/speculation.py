"""Guesses at a sequence's next tokens, by a small module that runs behind the model in the same step.

The module reads, for each position that the model has computed, the model's hidden state and the token
that follows, and keeps keys and values of its own in the sequence's blocks. What it finds behind the
last token is a draft: the next step runs it behind that token. The sampler chooses from the model's
own logits, as always; if its choice is the draft, the logits behind the draft count too, and the step
has brought two tokens. If not, nothing has happened: the slots behind the last token that counts are
written again before they are read. So an answer is the same with drafts and without, whatever they are.

A draft is drawn by the sampler too, by the request's parameters and the key of its position: what it
then chooses from the model's logits is mostly the same where the module is nearly right, at any
temperature.

Keys and values of the module at position i depend on the token at i + 1. That token is always known: no
more counts as computed than the tokens before the last one. It is part of a block's name
(``LOOKAHEAD``), so that only those share a block who go on alike behind it.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layers import LayerKVCache, take
from ernie_kernels.models.mtp import AFTER_NORM, MultiTokenPredictor, SpeculativeConfig
from ernie_kernels.models.workspace import Workspace
from ernie_kernels.runner.batch import ForwardBatch, TokenSpan
from ernie_kernels.runner.sequence import Sequence

LOOKAHEAD = 1  # tokens behind a block that what the module keeps in it depends on


@dataclass(slots=True)
class DraftCounts:
    """Since the beginning: drafts that were run, and those of them that proved right."""

    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None


def followed_span(sequence: Sequence, span: TokenSpan) -> TokenSpan:
    """What the module runs behind a step's span: its positions whose next token is known.

    Each with that token; there may be none. A draft is wanted behind the last known token, if the
    sequence may have two more.
    """
    stop = min(span.stop, sequence.num_tokens - 1)
    wants_draft = (
        stop == sequence.num_tokens - 1
        and not sequence.is_finished
        and sequence.num_tokens + 2 <= len(sequence.token_ids)
    )
    token_ids = sequence.token_ids[span.start + 1 : stop + 1]
    return TokenSpan(token_ids, span.start, span.blocks, int(wants_draft and len(token_ids) > 0))


class Drafter:
    """A model's multi-token prediction module with its cache.

    Args:
        kv_cache: of the same blocks as the model's own.
        workspace: the model's; what it holds is lost at each call.
    """

    def __init__(
        self,
        module: MultiTokenPredictor,
        config: ModelConfig,
        speculative: SpeculativeConfig,
        kv_cache: LayerKVCache,
        workspace: Workspace,
        *,
        block_size: int,
        dtype: str,
        device: str,
    ) -> None:
        self.kv_cache = kv_cache
        self._module = module
        self._made = empty([0, config.hidden_size], dtype, device)
        self._reads_normed = speculative.hidden_state == AFTER_NORM
        self._workspace = workspace
        self._block_size = block_size
        self._device = device
        self._joined = empty([workspace.max_tokens, 2 * config.hidden_size], dtype, device)

    def keep(self, *, before_norm: Tensor, after_norm: Tensor) -> None:
        """What a step of the model has made of all its rows: ``[num_tokens, hidden_size]``, in place."""
        self._made = after_norm if self._reads_normed else before_norm

    def __call__(self, spans: Rows[TokenSpan], followed: Rows[TokenSpan]) -> Tensor | None:
        """Run the module behind a step of the model, whose rows were given to :meth:`keep`.

        Args:
            spans: those of the step.
            followed: the beginning of each that the module runs, by :func:`followed_span`.

        Returns:
            Hidden states after the final norm where ``followed`` wants a draft, laid end to end:
            ``[num_outputs, hidden_size]``, valid until the next step. None if there is nothing to
            run.
        """
        firsts = np.cumsum([0, *(len(span.token_ids) for span in spans)])
        some = [
            (int(first), f) for first, f in zip(firsts, followed, strict=False) if f.token_ids.size
        ]
        if not some:
            return None
        rows = np.concatenate([np.arange(first, first + len(f.token_ids)) for first, f in some])
        hidden_states = take(from_numpy(rows, self._device), self._made)
        batch = ForwardBatch.from_spans([f for _, f in some], self._block_size, self._device)
        return self._module(
            hidden_states,
            batch,
            self.kv_cache,
            self._workspace.rows(len(rows)),
            self._joined[: len(rows)],
        )
