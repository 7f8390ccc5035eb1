"""Which sequences run in a step: first come, first served, as many at once as the cache holds.

Running sequences that need one token come first, then the prompts that are being read, in chunks,
then the head of the queue, if there are blocks for all its tokens. Blocks are taken as tokens are
scheduled. When none can be had, the running sequence that came last loses its blocks and goes back
to the head of the queue: it is computed again later, to the same bits. So whoever waits came after
all who run, and the oldest always goes forward.

A prompt whose next tokens show images that the vision tower is not done with keeps its place and gets
blocks for all its tokens, but does not run: nobody behind it waits for the tower while there are
places and blocks for both.

Guesses at a sequence's next tokens run behind its last one. They have a place in the step for sure,
and blocks if some are left: nobody waits or goes for a guess.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np

from ernie_kernels.errors import CapacityError, InternalError
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.runner.sequence import Sequence

# Of a prompt's media and its tokens ``start .. stop - 1`` whether these can be read now.
MayRead = Callable[[PromptMedia, int, int], bool]

# Of all blocks this share stays free when a sequence is admitted beside others, at least one block:
# the others are about to grow.
WATERMARK = 0.01


class _Step:
    """What has been scheduled of a step so far."""

    def __init__(self, room: int) -> None:
        self.room = room  # tokens that may be added
        self.spans: dict[Sequence, TokenSpan] = {}

    def add(self, sequence: Sequence, span: TokenSpan) -> None:
        self.spans[sequence] = span
        self.room -= len(span.token_ids)

    def drop(self, sequence: Sequence) -> None:
        span = self.spans.pop(sequence, None)
        if span is not None:
            self.room += len(span.token_ids)


class Scheduler:
    """The sequences that wait and those that run. Not thread-safe.

    After an exception out of any method, :meth:`restore` must be called before any other.

    Args:
        max_num_seqs: sequences that run at the same time.
        max_tokens_per_step: at least ``max_num_seqs``, and their guesses.
        lookahead: tokens behind a block that its contents depend on as well. Then no more may count
            as computed than so many tokens before a sequence's last one.

    Attributes:
        num_preemptions, num_prefix_hit_tokens: since the beginning; the latter are tokens whose
            keys and values were found instead of computed.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_tokens_per_step: int,
        lookahead: int = 0,
    ) -> None:
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._block_manager = block_manager
        self._block_size = block_manager.block_size
        self._max_num_seqs = max_num_seqs
        self._max_tokens_per_step = max_tokens_per_step
        self._lookahead = lookahead
        self._watermark = max(1, int(block_manager.num_blocks * WATERMARK))
        self._arrivals = itertools.count()
        # Both in the order of arrival, and all that wait came after all that run.
        # There may be 100,000 that wait, and any of them may be given up.
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()
        self._running: list[Sequence] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # ----------------------------------------------------------------------------- coming and going

    def prepare(self, sequence: Sequence) -> None:
        """Make room for the block table. May be called at any time, from any thread.

        Raises:
            CapacityError: the sequence could never run, not even alone.
        """
        count = self._block_manager.blocks_for(len(sequence.token_ids))
        if count > self._block_manager.num_blocks:
            raise CapacityError(
                f"KV cache: {count} blocks of {self._block_size} tokens needed, there are "
                f"{self._block_manager.num_blocks}; raise kv_cache_memory or ask for fewer tokens"
            )
        sequence.block_table = np.empty(count, np.int32)

    def add(self, sequence: Sequence) -> None:
        """Let a prepared sequence wait for its turn."""
        sequence.arrival = next(self._arrivals)
        self._waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that has ended; its blocks can be had again, and its images forgotten."""
        if sequence in self._waiting:
            del self._waiting[sequence]
        else:
            self._running.remove(sequence)
        self._release(sequence)
        sequence.media = None

    # ------------------------------------------------------------------------------------- a step

    def schedule(self, may_read: MayRead | None = None) -> list[tuple[Sequence, TokenSpan]]:
        """The next step's work; at least one span unless nothing waits or runs, or all that run are
        told that they may not read on.

        Args:
            may_read: asked in the order in which prompts came, but for those that generate; None:
                all may.
        """
        num_drafted = sum(s.num_drafted for s in self._running)
        step = _Step(self._max_tokens_per_step - num_drafted)
        remaining = {s: s.num_tokens - s.num_computed for s in self._running}
        # A stable sort keeps the order of arrival.
        for sequence in sorted(self._running, key=lambda s: remaining[s] > 1):
            count = min(step.room, remaining[sequence])
            if count == 0:
                break
            if sequence.num_blocks == 0:  # it has just lost them to another
                continue
            is_ready = _is_ready(sequence, count, may_read)
            reserved = count if is_ready else remaining[sequence]
            if self._take_blocks(sequence, reserved, step) and is_ready:
                step.add(sequence, self._span(sequence, count))
        self._admit(step, may_read)
        if num_drafted:
            self._add_drafts(step)
        return list(step.spans.items())

    def _add_drafts(self, step: _Step) -> None:
        for sequence, span in list(step.spans.items()):
            if sequence.num_drafted == 0 or span.stop < sequence.num_tokens:
                continue
            manager = self._block_manager
            room = (sequence.num_blocks + manager.num_free) * self._block_size
            stop = min(span.stop + sequence.num_drafted, room)
            missing = max(0, manager.blocks_for(stop) - sequence.num_blocks)
            self._append_blocks(sequence, manager.allocate(missing))
            step.spans[sequence] = self._span(sequence, stop - span.start)

    def _span(self, sequence: Sequence, count: int) -> TokenSpan:
        start = sequence.num_computed
        stop = start + count
        # The last of a sequence's tokens is what the next one is sampled from, and each guess one more.
        outputs = max(0, stop + 1 - sequence.num_tokens)
        if sequence.logits is not None:
            outputs = count
        return TokenSpan(
            sequence.token_ids[start:stop], start, sequence.blocks, outputs, sequence.media
        )

    def _take_blocks(self, sequence: Sequence, count: int, step: _Step) -> bool:
        """Give a running sequence blocks for ``count`` more tokens; False if it was preempted."""
        stop = sequence.num_computed + count
        missing = self._block_manager.blocks_for(stop) - sequence.num_blocks
        while missing > self._block_manager.num_free:
            last = self._running[-1]
            self._preempt(last)
            step.drop(last)
            if last is sequence:
                return False
        if missing > 0:
            self._append_blocks(sequence, self._block_manager.allocate(missing))
        return True

    def _append_blocks(self, sequence: Sequence, blocks: list[int]) -> None:
        end = sequence.num_blocks + len(blocks)
        sequence.block_table[sequence.num_blocks : end] = blocks
        sequence.num_blocks = end

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self._waiting[sequence] = None
        self._waiting.move_to_end(sequence, last=False)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        blocks = sequence.blocks.tolist()
        # In this order: at no moment does it count tokens as computed in blocks that it may write to.
        sequence.num_blocks = 0
        sequence.num_computed = 0
        sequence.num_drafted = 0
        self._block_manager.release(blocks)

    # ------------------------------------------------------------------------------------ admission

    def _admit(self, step: _Step, may_read: MayRead | None) -> None:
        manager = self._block_manager
        # While there is room in the step, all that run have the blocks for all their tokens.
        while step.room > 0 and self._waiting and len(self._running) < self._max_num_seqs:
            sequence = next(iter(self._waiting))
            if self._awaits_sibling(sequence):
                return
            found = self._find_prefix(sequence)
            missing = manager.blocks_for(sequence.num_tokens) - len(found)
            can_be_had = manager.num_free - manager.num_cached_of(found)
            if self._running and missing + self._watermark > can_be_had:
                return
            manager.acquire(found)
            self._append_blocks(sequence, found)
            sequence.num_computed = len(found) * self._block_size
            self.num_prefix_hit_tokens += sequence.num_computed
            count = min(step.room, sequence.num_tokens - sequence.num_computed)
            is_ready = _is_ready(sequence, count, may_read)
            stop = sequence.num_computed + count if is_ready else sequence.num_tokens
            self._append_blocks(sequence, manager.allocate(manager.blocks_for(stop) - len(found)))
            self._running.append(sequence)
            del self._waiting[sequence]
            if is_ready:
                step.add(sequence, self._span(sequence, count))

    def _awaits_sibling(self, sequence: Sequence) -> bool:
        """Whether one before it is just computing blocks of the prompt that both have."""
        before = itertools.takewhile(lambda s: s is not sequence, sequence.siblings)
        shared = (sequence.num_prompt_tokens - 1) // self._block_size * self._block_size
        # One that has ended keeps its numbers if an interrupt kept it from being taken out.
        return any(
            s.num_blocks > 0 and s.num_computed < shared and not s.is_finished for s in before
        )

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence; its last token is always left to compute."""
        if sequence.logits is not None:
            return []
        count = (sequence.num_tokens - 1) // self._block_size
        return self._block_manager.find_prefix(
            sequence.hashes(count, self._block_size, self._lookahead)
        )

    # ------------------------------------------------------------------------------ after the step

    def advance(self, sequence: Sequence, stop: int) -> None:
        """Keys and values of the tokens up to ``stop`` are in the cache now."""
        full = sequence.num_computed // self._block_size
        now_full = stop // self._block_size
        # In this order: nobody writes to a block that others may find.
        sequence.num_computed = stop
        if now_full > full:
            hashes = sequence.hashes(now_full, self._block_size, self._lookahead)
            for index in range(full, now_full):
                self._block_manager.publish(int(sequence.block_table[index]), hashes[index])

    def restore(self, sequences: Iterable[Sequence]) -> None:
        """Make everything anew from the unfinished sequences alone, whatever has been interrupted.

        What a sequence has computed stays; the rest of its blocks, and all blocks of sequences that
        are not among these, can be had again. Who ran without having computed anything yet keeps one
        block, and with it its place before those that came later.
        """
        ordered = sorted(sequences, key=lambda s: s.arrival)
        ran = set(self._running)
        for sequence in ordered:
            sequence.num_drafted = 0
            if sequence.num_computed > sequence.num_blocks * self._block_size:
                sequence.num_computed = sequence.num_blocks = 0
            least = min(1, sequence.num_blocks) if sequence in ran else 0
            computed = self._block_manager.blocks_for(sequence.num_computed)
            sequence.num_blocks = max(least, computed)
        self._running = list(itertools.takewhile(lambda s: s.num_blocks > 0, ordered))
        self._waiting = OrderedDict.fromkeys(ordered[len(self._running) :])
        for sequence in self._waiting:
            sequence.num_blocks = 0
            sequence.num_computed = 0
        self._block_manager.rebuild(s.blocks.tolist() for s in self._running)

    def check(self) -> None:
        """Raises InternalError unless queue, sequences and blocks agree with each other."""
        ordered = [*self._running, *self._waiting]
        if any(a.arrival >= b.arrival for a, b in itertools.pairwise(ordered)):
            raise InternalError("scheduler: a sequence runs or waits before one that came earlier")
        for sequence in ordered:
            is_running = sequence.num_blocks > 0
            if is_running != (sequence in self._running) or sequence.is_finished:
                raise InternalError(f"scheduler: sequence {sequence.arrival} is on the wrong list")
            if not 0 <= sequence.num_computed < sequence.num_tokens or sequence.num_computed > (
                sequence.num_blocks * self._block_size
            ):
                raise InternalError(
                    f"scheduler: sequence {sequence.arrival}: {sequence.num_computed} tokens "
                    f"computed of {sequence.num_tokens} in {sequence.num_blocks} blocks"
                )
        if len(self._running) > self._max_num_seqs:
            raise InternalError(f"scheduler: {len(self._running)} sequences run")
        self._block_manager.check(s.blocks.tolist() for s in self._running)


def _is_ready(sequence: Sequence, count: int, may_read: MayRead | None) -> bool:
    start = sequence.num_computed
    if sequence.media is None or may_read is None:
        return True
    return may_read(sequence.media, start, start + count)
