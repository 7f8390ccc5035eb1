"""What one step runs: tokens of several sequences laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.runner.step_media import StepMedia


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens ``start .. start + len(token_ids) - 1`` of one sequence, to be run in this step.

    Everything before ``start`` is in the cache already.
    """

    token_ids: np.ndarray  # int64, at least one
    start: int
    blocks: np.ndarray  # int32, ids of the cache blocks that hold the sequence, in order
    num_outputs: int  # of how many of the last tokens the final hidden states are wanted
    media: PromptMedia | None = None  # of the sequence's prompt

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def position_delta(self) -> int:
        """What makes the number of a generated token its position."""
        return 0 if self.media is None else self.media.plan.position_delta


@dataclass(frozen=True, slots=True)
class QueryRows:
    """Rows of a batch that attend: of each sequence the last few, or none."""

    rows: Tensor | None  # [num_rows] int64, ascending; None: all of the batch
    cu_seqlens_q: Tensor  # [num_seqs + 1] int32, first row of each sequence
    max_seqlen_q: int
    banks: Tensor | None = None  # [num_rows] uint8, of experts that each asks; None: all text

    @classmethod
    def last_of(
        cls, lengths: list[int], wanted: list[int], banks: np.ndarray | None, device: str
    ) -> QueryRows:
        """The last ``wanted[s]`` of the ``lengths[s]`` rows of each sequence.

        ``banks``: of all rows.
        """
        rows = None
        if wanted != lengths:
            stops = np.cumsum(lengths)
            chosen = [np.arange(stop - n, stop) for stop, n in zip(stops, wanted, strict=True)]
            numbers = np.concatenate(chosen).astype(np.int64)
            rows = from_numpy(numbers, device)
            banks = None if banks is None else banks[numbers]
        cu_seqlens_q = from_numpy(np.cumsum([0, *wanted], dtype=np.int32), device)
        of_vision = banks is not None and bool(banks.any())
        return cls(
            rows, cu_seqlens_q, max(wanted), from_numpy(banks, device) if of_vision else None
        )


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Sequences of one step laid end to end: num_tokens rows, num_seqs sequences."""

    input_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    queries: QueryRows  # all rows
    outputs: QueryRows  # those whose final hidden states are wanted; ``queries`` itself if all are
    seq_lens: Tensor  # [num_seqs] int32, tokens in the cache after this step
    slot_mapping: Tensor  # [num_tokens] int32, cache slot each row is written to
    block_table: Tensor  # [num_seqs, max_blocks] int32, -1 past the end
    max_seq_len: int
    flags: Tensor  # [num_tokens] uint8, zeros; 1 where a router finds what is not finite
    # Of prompts with images and videos. Without them the positions above are all there is.
    mrope_positions: Tensor | None = None  # [3, num_tokens] int64: time, row, column
    visual_rows: Tensor | None = None  # [n] int32: rows whose embedding is a feature
    visual_features: Tensor | None = None  # [n, hidden_size]

    @property
    def banks(self) -> Tensor | None:
        """Of experts that each row asks: ``[num_tokens]`` uint8; None: all are text."""
        return self.queries.banks

    @classmethod
    def from_spans(
        cls,
        spans: Sequence[TokenSpan],
        block_size: int,
        device: str,
        first_vision_id: int | None = None,
    ) -> ForwardBatch:
        """``first_vision_id``: see :meth:`.StepMedia.of`."""
        lengths = [len(span.token_ids) for span in spans]
        wanted = [span.num_outputs for span in spans]
        seq_lens = np.array([span.stop for span in spans], np.int32)
        max_seq_len = int(seq_lens.max())
        block_table = np.full((len(spans), -(-max_seq_len // block_size)), -1, np.int32)
        for row, span in zip(block_table, spans, strict=True):
            used = -(-span.stop // block_size)
            row[:used] = span.blocks[:used]
        # From a row's number in the batch to that in its sequence: what lies between their ends.
        behind = np.repeat(seq_lens - np.cumsum(lengths), lengths)
        numbers = np.arange(len(behind), dtype=np.int64) + behind
        sequences = np.repeat(np.arange(len(spans)), lengths)
        blocks = block_table[sequences, numbers // block_size]
        slots = blocks * block_size + numbers % block_size
        media = StepMedia.of(spans, numbers, first_vision_id)
        has_grid = media.mrope_positions is not None
        queries = QueryRows.last_of(lengths, lengths, media.banks, device)
        outputs = queries
        if wanted != lengths:
            outputs = QueryRows.last_of(lengths, wanted, media.banks, device)
        return cls(
            input_ids=from_numpy(np.concatenate([span.token_ids for span in spans]), device),
            positions=from_numpy(media.positions, device),
            queries=queries,
            outputs=outputs,
            seq_lens=from_numpy(seq_lens, device),
            slot_mapping=from_numpy(slots.astype(np.int32), device),
            block_table=from_numpy(block_table, device),
            max_seq_len=max_seq_len,
            flags=from_numpy(np.zeros(len(numbers), np.uint8), device),
            mrope_positions=from_numpy(media.mrope_positions, device) if has_grid else None,
            visual_rows=from_numpy(media.rows, device) if media.features else None,
            visual_features=media.joined_features(device),
        )
