"""Which sequences run in a step: those of one call, first come first served.

A sequence gets all the cache blocks it may ever need when it is admitted, so that none has to be
interrupted. Decoding sequences go first, one token each; what is left of the step's token budget
goes to prompts, in chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.sequence import Sequence


class StaticScheduler:
    """Schedules a fixed set of sequences until all have finished.

    Args:
        owner: in whose name blocks are taken.
        max_num_seqs: sequences that run at the same time.
        max_tokens_per_step: at least ``max_num_seqs``.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        owner: int,
        sequences: Iterable[Sequence],
        *,
        max_num_seqs: int,
        max_tokens_per_step: int,
    ) -> None:
        self._block_manager = block_manager
        self._owner = owner
        self._waiting = deque(sequences)
        self._running: list[Sequence] = []
        self._max_num_seqs = max_num_seqs
        self._max_tokens_per_step = max_tokens_per_step

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    def schedule(self) -> list[tuple[Sequence, TokenSpan]]:
        """The next step's work; at least one span unless all is done.

        Raises:
            CapacityError: nothing runs, and other calls hold the blocks that the next sequence
                needs.
        """
        self._admit()
        room = self._max_tokens_per_step
        spans = []
        # Decoding sequences need one token each; a stable sort keeps the order of arrival.
        for sequence in sorted(self._running, key=lambda s: s.num_tokens - s.num_computed > 1):
            count = min(room, sequence.num_tokens - sequence.num_computed)
            if count == 0:
                break
            room -= count
            start = sequence.num_computed
            tokens = sequence.token_ids[start : start + count]
            # The last of a sequence's tokens is what the next one is sampled from.
            outputs = int(start + count == sequence.num_tokens)
            spans.append((sequence, TokenSpan(tokens, start, sequence.blocks, outputs)))
        return spans

    def retire(self, sequence: Sequence) -> None:
        """Take a finished sequence out and free its blocks."""
        self._running.remove(sequence)
        self._block_manager.free(sequence.blocks.tolist(), self._owner)
        sequence.blocks = np.empty(0, np.int32)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[0]
            count = self._block_manager.blocks_for(len(sequence.token_ids))
            if self._running and count > self._block_manager.num_free:
                return
            blocks = self._block_manager.allocate(count, self._owner)
            sequence.blocks = np.array(blocks, np.int32)
            self._running.append(self._waiting.popleft())
