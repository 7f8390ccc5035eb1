"""Guesses at a sequence's next tokens, by a small module that runs behind the model in the same step.

The module reads, for each position that the model has computed, the model's hidden state and the token
that follows, and keeps keys and values of its own in the sequence's blocks. What it finds behind the
last token is a draft: the next step runs it behind that token. The sampler chooses from the model's
own logits, as always; if its choice is the draft, the logits behind the draft count too, and the step
has brought two tokens. If not, nothing has happened: the slots behind the last token that counts are
written again before they are read. So an answer is the same with drafts and without, whatever they are.
For a draft behind the draft the module reads what it has made itself, in place of the model.

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
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layers import LayerKVCache, take
from ernie_kernels.models.mtp import AFTER_NORM, MultiTokenPredictor, SpeculativeConfig
from ernie_kernels.models.workspace import Workspace
from ernie_kernels.runner.batch import ForwardBatch, TokenSpan
from ernie_kernels.runner.sequence import Sequence

if TYPE_CHECKING:
    from ernie_kernels.runner.model_runner import ModelRunner
    from ernie_kernels.runner.sampler import SampleFunction

LOOKAHEAD = 1  # tokens behind a block that what the module keeps in it depends on


@dataclass(slots=True)
class DraftCounts:
    """Since the beginning: drafts that were run, and those of them that proved right."""

    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None


# ------------------------------------------------------------------------------- behind a step


def draft(
    runner: ModelRunner, sampler: SampleFunction, scheduled: Rows[tuple[Sequence, TokenSpan]]
) -> list[int]:
    """Run the module behind a step, and leave drafts behind the sequences' tokens.

    Returns:
        How many tokens of each sequence now count as computed.
    """
    followed = [followed_span(sequence, span) for sequence, span in scheduled]
    firsts = np.cumsum([0, *(len(span.token_ids) for _, span in scheduled)]).tolist()
    runs = [run for run in zip(firsts, followed, strict=False) if len(run[1].token_ids)]
    if not runs:
        return [span.stop for span in followed]
    rows = np.concatenate([np.arange(first, first + len(span.token_ids)) for first, span in runs])
    logits = runner.draft(rows, [span for _, span in runs])
    drafting = [s for (s, _), span in zip(scheduled, followed, strict=True) if span.num_outputs]
    while logits is not None:
        tokens, _ = sampler(logits, drafting, [s.num_tokens + s.num_drafted for s in drafting])
        further: list[tuple[int, Sequence, TokenSpan]] = []
        for row, (sequence, token) in enumerate(zip(drafting, tokens, strict=True)):
            if token < 0:  # the module overflows
                continue
            sequence.token_ids[sequence.num_tokens + sequence.num_drafted] = token
            sequence.num_drafted += 1
            if sequence.num_drafted < runner.num_drafts and may_draft(sequence):
                span = draft_span(sequence)
                if span.stop <= sequence.num_blocks * runner.block_size:
                    further.append((row, sequence, span))
        drafting = [sequence for _, sequence, _ in further]
        logits = None
        if further:
            rows = np.array([row for row, _, _ in further], np.int64)
            logits = runner.draft(rows, [span for _, _, span in further])
    return [span.stop for span in followed]


def may_draft(sequence: Sequence) -> bool:
    """Whether one more draft could be followed by another token."""
    room = len(sequence.token_ids) - sequence.num_tokens - sequence.num_drafted
    return room >= 2 and not sequence.is_finished


def followed_span(sequence: Sequence, span: TokenSpan) -> TokenSpan:
    """What the module runs behind a step's span: its positions whose next token is known.

    Each with that token; there may be none. A draft is wanted behind the last known token.
    """
    stop = min(span.stop, sequence.num_tokens - 1)
    token_ids = sequence.token_ids[span.start + 1 : stop + 1]
    is_last = stop == sequence.num_tokens - 1 and len(token_ids) > 0
    return TokenSpan(token_ids, span.start, span.blocks, int(is_last and may_draft(sequence)))


def draft_span(sequence: Sequence) -> TokenSpan:
    """What the module runs to go on behind a draft: the position before it, with the draft."""
    at = sequence.num_tokens + sequence.num_drafted - 1
    return TokenSpan(sequence.token_ids[at : at + 1], at - 1, sequence.blocks, 1)


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

    def __call__(self, rows: np.ndarray, spans: Rows[TokenSpan]) -> Tensor:
        """Run the module behind a step of the model, or behind itself.

        Args:
            rows: int64, of each token of ``spans`` its row among those given to :meth:`keep`, or
                among those that the last call returned.
            spans: positions, each with the token of the next one.

        Returns:
            Hidden states after the final norm where the spans want outputs, laid end to end:
            ``[num_outputs, hidden_size]``, valid until the next step or call.
        """
        after_norm, before_norm = self._module(
            take(from_numpy(rows, self._device), self._made),
            ForwardBatch.from_spans(spans, self._block_size, self._device),
            self.kv_cache,
            self._workspace.rows(len(rows)),
            self._joined[: len(rows)],
        )
        self.keep(before_norm=before_norm, after_norm=after_norm)
        return after_norm
