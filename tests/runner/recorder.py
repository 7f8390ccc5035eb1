"""Keeps the logits that every token was chosen from."""

from __future__ import annotations

from typing import Self

import numpy as np
from ernie_kernels._core import from_numpy

import ernie_kernels as ek
from ernie_kernels import _core
from ernie_kernels.models.loader import NUMPY_DTYPES


class Recorder:
    """In the place of an engine's sampler. Answers are told apart by their seeds."""

    def __init__(self, llm: ek.LLM) -> None:
        self.logits: dict[tuple[int, int], bytes] = {}  # by seed and position
        self._engine = llm._engine
        self._sampler = self._engine._sampler

    def __enter__(self) -> Self:
        self._engine._sampler = self
        return self

    def __exit__(self, *_) -> None:
        self._engine._sampler = self._sampler

    def __call__(self, logits, sequences, positions):
        for row, sequence, position in zip(logits.numpy(), sequences, positions, strict=True):
            key = (sequence.seed, position)
            assert key not in self.logits
            self.logits[key] = row.tobytes()
        return self._sampler(logits, sequences, positions)


class DraftRecorder(Recorder):
    """Keeps the module's logits too, each from which a draft was chosen.

    The same draft is made again where a sequence lost its blocks: it must be the same to the bit.
    """

    def __init__(self, llm: ek.LLM) -> None:
        super().__init__(llm)
        self.drafts: dict[tuple[int, int, int], bytes] = {}  # by seed, tokens before, position
        self._runner = llm._engine._runner
        self._draft = self._runner.draft
        self._is_draft = False

    def __enter__(self) -> Self:
        self._runner.draft = self.draft
        return super().__enter__()

    def __exit__(self, *_) -> None:
        del self._runner.draft
        super().__exit__()

    def draft(self, rows, spans):
        logits = self._draft(rows, spans)
        self._is_draft = logits is not None
        return logits

    def __call__(self, logits, sequences, positions):
        if not self._is_draft:
            return self._sampler(logits, sequences, positions)
        self._is_draft = False
        for row, sequence, position in zip(logits.numpy(), sequences, positions, strict=True):
            assert np.isfinite(row).all()
            key = (sequence.seed, sequence.num_tokens, position)
            made = self.drafts.setdefault(key, row.tobytes())
            assert made == row.tobytes()
        return self._sampler(logits, sequences, positions)


def fill_taken_blocks_with_nan(llm: ek.LLM) -> None:
    """From now on a block is full of NaN when a sequence takes it, whoever had it before."""
    manager, runner = llm._engine._block_manager, llm._engine._runner
    caches = [*runner._kv_caches, *([runner._drafter.kv_cache] if runner._drafter else [])]
    allocate = manager.allocate
    of_block = caches[0].k_cache[0]
    nan = np.full(of_block.shape, np.nan, NUMPY_DTYPES[of_block.dtype_name])
    spoiled = from_numpy(nan, of_block.device)

    def allocate_and_spoil(count: int) -> list[int]:
        blocks = allocate(count)
        for layer in caches:
            for cache in (layer.k_cache, layer.v_cache):
                for block in blocks:
                    _core.queue_copy(cache[block], spoiled)
        return blocks

    manager.allocate = allocate_and_spoil
