"""Keeps the logits that every token was chosen from."""

from __future__ import annotations

from typing import Self

import numpy as np

import ernie_kernels as ek


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


def fill_taken_blocks_with_nan(llm: ek.LLM) -> None:
    """From now on a block is full of NaN when a sequence takes it, whoever had it before."""
    manager, caches = llm._engine._block_manager, llm._engine._runner._kv_caches
    allocate = manager.allocate

    def allocate_and_spoil(count: int) -> list[int]:
        blocks = allocate(count)
        for layer in caches:
            for cache in (layer.k_cache, layer.v_cache):
                cache.numpy()[blocks] = np.nan
        return blocks

    manager.allocate = allocate_and_spoil
