"""The one door to the cache: every step of every call passes here, one at a time."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from ernie_kernels.errors import ArgumentError
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.generation import Generation
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.sampler import Sampler
from ernie_kernels.runner.sequence import Progress, Sequence
from ernie_kernels.runner.static_scheduler import StaticScheduler
from ernie_kernels.tokenizer import Tokenizer


class Engine:
    """Serves calls of several threads over one model and one cache.

    Each call is an owner of cache blocks. However a call ends (finished, failed, interrupted,
    abandoned halfway through a stream), its owner is retired and the blocks come back: at once, or
    before the next step of another call if that one is just running.
    """

    def __init__(
        self,
        runner: ModelRunner,
        block_manager: BlockManager,
        sampler: Sampler,
        *,
        eos_token_ids: Iterable[int],
        tokenizer: Tokenizer | None,
        max_num_seqs: int,
    ) -> None:
        self.num_generated_tokens = 0
        self.num_prompt_tokens = 0
        self._runner: ModelRunner | None = runner
        self._block_manager = block_manager
        self._sampler = sampler
        self._eos_token_ids = tuple(eos_token_ids)
        self._tokenizer = tokenizer
        self._max_num_seqs = max_num_seqs
        # Not reentrant on purpose: a stream that the garbage collector ends in the middle of
        # another call's step must not touch the blocks there and then.
        self._lock = threading.Lock()
        self._owner_ids = itertools.count()
        self._live: set[int] = set()
        self._retired: deque[int] = deque()

    # -------------------------------------------------------------------------------------- calls

    def generate(self, sequences: list[Sequence]) -> list[Progress]:
        """Run sequences to their ends; no other call runs in between."""
        owner = next(self._owner_ids)
        progress: list[Progress] = []
        with self._lock:
            try:
                self._enter(owner)
                generation = self._generation(owner, sequences)
                while not generation.is_done:
                    progress += self._step(generation)
            finally:
                self._retired.append(owner)
                self._sweep()
        return progress

    def stream(self, sequences: list[Sequence]) -> Generator[list[Progress], None, None]:
        """The same step by step; other calls may run between two steps."""
        owner = next(self._owner_ids)
        generation = None
        try:
            while generation is None or not generation.is_done:
                with self._lock:
                    self._enter(owner)
                    if generation is None:
                        generation = self._generation(owner, sequences)
                    progress = self._step(generation)
                if progress:
                    yield progress
        finally:
            self._retired.append(owner)
            if self._lock.acquire(blocking=False):
                try:
                    self._sweep()
                finally:
                    self._lock.release()

    def forward(self, prompts: list[np.ndarray], vocab_size: int) -> list[np.ndarray]:
        """Logits of all tokens of all prompts: float32 ``[len(prompt), vocab_size]`` each.

        Raises:
            CapacityError: other calls hold the blocks that a prompt needs.
        """
        owner = next(self._owner_ids)
        with self._lock:
            try:
                runner = self._enter(owner)
                logits = [np.empty((len(ids), vocab_size), np.float32) for ids in prompts]
                for step in self._prompt_steps(prompts, owner):
                    hidden_states = runner.run([span for _, span in step])
                    row = 0
                    for index, span in step:
                        count = len(span.token_ids)
                        runner.write_logits(
                            hidden_states[row : row + count],
                            logits[index][span.start : span.stop],
                        )
                        row += count
                    self.num_prompt_tokens += row
            finally:
                self._retired.append(owner)
                self._sweep()
        return logits

    def _prompt_steps(
        self, prompts: list[np.ndarray], owner: int
    ) -> Iterator[list[tuple[int, TokenSpan]]]:
        """Prompts cut and packed into steps; what ends in a step is freed after it."""
        assert self._runner is not None  # _enter has seen it
        manager = self._block_manager
        waiting = deque(enumerate(prompts))
        start = 0  # tokens of the first waiting prompt that have run
        table = np.empty(0, np.int32)  # its blocks
        while waiting:
            step: list[tuple[int, TokenSpan]] = []
            ended: list[int] = []
            room = self._runner.max_tokens_per_step
            while waiting and room > 0:
                index, ids = waiting[0]
                if start == 0:
                    count = manager.blocks_for(len(ids))
                    if step and count > manager.num_free:
                        break
                    table = np.array(manager.allocate(count, owner), np.int32)
                tokens = ids[start : start + room]
                span = TokenSpan(tokens, start, table, num_outputs=len(tokens))
                step.append((index, span))
                room -= len(span.token_ids)
                start = span.stop
                if start == len(ids):
                    ended += table.tolist()
                    waiting.popleft()
                    start = 0
            yield step
            manager.free(ended, owner)

    # ------------------------------------------------------------------------------------- blocks

    def _enter(self, owner: int) -> ModelRunner:
        self.check_open()
        assert self._runner is not None
        self._sweep()
        self._live.add(owner)
        return self._runner

    def _sweep(self) -> None:
        """Take back the blocks of retired owners. May be interrupted and repeated anywhere."""
        gone = list(self._retired)
        if gone:
            self._block_manager.keep_only(self._live.difference(gone))
            self._live.difference_update(gone)
            for _ in gone:
                self._retired.popleft()

    def _generation(self, owner: int, sequences: list[Sequence]) -> Generation:
        assert self._runner is not None  # _enter has seen it
        scheduler = StaticScheduler(
            self._block_manager,
            owner,
            sequences,
            max_num_seqs=self._max_num_seqs,
            max_tokens_per_step=self._runner.max_tokens_per_step,
        )
        return Generation(
            scheduler,
            self._runner,
            self._sampler,
            eos_token_ids=self._eos_token_ids,
            tokenizer=self._tokenizer,
        )

    def _step(self, generation: Generation) -> list[Progress]:
        progress = generation.step()
        for item in progress:
            if item.sequence.num_output_tokens <= 1:
                self.num_prompt_tokens += item.sequence.num_prompt_tokens
        self.num_generated_tokens += sum(item.token_id is not None for item in progress)
        return progress

    # -------------------------------------------------------------------------------------- state

    def num_free_blocks(self) -> int:
        with self._lock:
            self._sweep()
            return self._block_manager.num_free

    def close(self) -> None:
        """Release model and cache; every later call raises ArgumentError."""
        with self._lock:
            self._runner = None

    def check_open(self) -> None:
        if self._runner is None:
            raise ArgumentError(
                "LLM: expected an open model, got one that was closed; load it anew"
            )
