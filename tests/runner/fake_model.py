"""A model that is nothing but its cache: an engine over it shows whose keys and values were where.

The slot of a token holds a number made of that token and all before it. The next token follows from
the last number and the sequence's seed, so ``expected_tokens`` can tell it without any cache.

With drafts there is a second cache: a token's slot holds the number that the next token makes. A
draft follows from it as the next token does from the model's, but one of three times it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.requests import Request
from ernie_kernels.runner.sampling import SamplingParams

VOCAB = 50
END_TOKEN = 0
MASK = (1 << 64) - 1
BEGIN = 0x9E3779B97F4A7C15
FACTOR = 0xD1342543DE82EF95


def number_after(number: int, token: int) -> int:
    return ((number ^ (token + 1)) * FACTOR + BEGIN) & MASK


def number_of(tokens: Iterable[int]) -> int:
    number = BEGIN
    for token in tokens:
        number = number_after(number, token)
    return number


def token_after(number: int, seed: int) -> int:
    """Below zero now and then: what a sampler says of logits that are not finite."""
    mixed = (number_after(number, seed & 0xFFFF) >> 33) % (VOCAB * 8)
    return -1 if mixed == VOCAB * 8 - 1 else mixed % VOCAB


def expected_tokens(
    prompt: Sequence[int], seed: int, params: SamplingParams
) -> tuple[list[int], str]:
    """What a request of one answer gets when nothing else happens: its tokens and how it ends."""
    number, tokens = number_of(prompt), []
    while True:
        token = token_after(number, seed)
        if token < 0:
            return tokens, "error"
        tokens.append(token)
        number = number_after(number, token)
        if token == END_TOKEN and not params.ignore_eos:
            return tokens, "stop"
        if len(tokens) == params.max_tokens:
            return tokens, "length"


class FakeRunner:
    """In the place of ``ModelRunner``. Every read checks what is read."""

    def __init__(
        self, num_blocks: int, block_size: int, max_tokens_per_step: int, num_drafts: int = 0
    ) -> None:
        self.num_drafts = num_drafts
        self.made: list[int] = []  # of all rows of the last call: what a draft is made from
        self.ahead = np.zeros(num_blocks * block_size, np.uint64)  # the drafts' cache
        self.block_size = block_size
        self.max_tokens_per_step = max_tokens_per_step
        self.num_tokens = 0
        self.num_spans = 0
        self.tokens = np.full(num_blocks * block_size, -1, np.int64)
        self.numbers = np.zeros(num_blocks * block_size, np.uint64)

    def run(self, spans: Sequence[TokenSpan]) -> np.ndarray:
        assert 1 <= sum(len(span.token_ids) for span in spans) <= self.max_tokens_per_step
        # All read before any writes, and nobody writes what another reads: as kernels may do it.
        for span in spans:
            self._check_read(span)
        written = [slot for span in spans for slot in self._slots(span, span.start, span.stop)]
        assert len(set(written)) == len(written)
        read = {slot for span in spans for slot in self._slots(span, 0, span.start)}
        assert read.isdisjoint(written)
        made = [self._write(span) for span in spans]
        self.made = [number for numbers in made for number in numbers]
        outputs = [
            number
            for span, numbers in zip(spans, made, strict=True)
            for number in numbers[len(numbers) - span.num_outputs :]
        ]
        self.num_tokens += len(written)
        self.num_spans += len(spans)
        return np.array(outputs, np.uint64)

    def decode(self, spans: Sequence[TokenSpan]) -> None:
        """As on the CPU: it has no way of its own."""

    def flagged(self, spans: Sequence[TokenSpan]) -> list[tuple[int, int]]:
        """It has no routers."""
        return []

    def draft(self, rows: np.ndarray, spans: Sequence[TokenSpan]) -> np.ndarray | None:
        given = [self.made[row] for row in rows]
        assert sum(len(span.token_ids) for span in spans) == len(given)
        self.made, guesses = [], []
        for span in spans:
            all_tokens = span.token_ids if span.token_ids.base is None else span.token_ids.base
            number = BEGIN
            for at, slot in enumerate(self._slots(span, 0, span.stop)):
                number = number_after(number, int(all_tokens[at]))
                ahead = number_after(number, int(all_tokens[at + 1]))
                if at < span.start:
                    assert int(self.ahead[slot]) == ahead
                else:
                    assert given.pop(0) == number
                    assert span.token_ids[at - span.start] == all_tokens[at + 1]
                    self.ahead[slot] = ahead
            if span.num_outputs:
                self.made.append(ahead)
                guesses.append(ahead if ahead % 3 else ahead ^ 1)
        return np.array(guesses, np.uint64) if guesses else None

    def _slots(self, span: TokenSpan, start: int, stop: int) -> list[int]:
        blocks = span.blocks.tolist()
        size = self.block_size
        return [blocks[at // size] * size + at % size for at in range(start, stop)]

    def _check_read(self, span: TokenSpan) -> None:
        slots = self._slots(span, 0, span.start)
        all_tokens = span.token_ids if span.token_ids.base is None else span.token_ids.base
        assert self.tokens[slots].tolist() == all_tokens[: span.start].tolist()
        if slots:
            assert int(self.numbers[slots[-1]]) == number_of(all_tokens[: span.start].tolist())

    def _write(self, span: TokenSpan) -> list[int]:
        before = self._slots(span, span.start - 1, span.start) if span.start else []
        number = int(self.numbers[before[0]]) if before else BEGIN
        numbers = []
        for slot, token in zip(
            self._slots(span, span.start, span.stop), span.token_ids.tolist(), strict=True
        ):
            number = number_after(number, token)
            self.tokens[slot], self.numbers[slot] = token, number
            numbers.append(number)
        return numbers

    def logits(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def write_logits(self, rows: np.ndarray, out: np.ndarray) -> None:
        out[...] = (rows % np.uint64(1 << 20))[:, None]

    def spoil(self, blocks: Iterable[int]) -> None:
        """What a block that changes hands may hold: nothing that anyone expects."""
        for block in blocks:
            self.tokens[block * self.block_size : (block + 1) * self.block_size] = -2
            self.ahead[block * self.block_size : (block + 1) * self.block_size] = 0


def fake_sampler(
    rows: np.ndarray, sequences: list, positions: list[int]
) -> tuple[list[int], list[None]]:
    tokens = [token_after(int(n), s.seed) for n, s in zip(rows, sequences, strict=True)]
    return tokens, [None] * len(sequences)


class SpoilingBlockManager(BlockManager):
    """Spoils what a block held as soon as the block is anyone's to write to."""

    runner: FakeRunner

    def allocate(self, count: int) -> list[int]:
        blocks = super().allocate(count)
        self.runner.spoil(blocks)
        return blocks


def fake_engine(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 16,
    num_drafts: int = 0,
) -> Engine:
    manager = SpoilingBlockManager(num_blocks, block_size)
    budget = max(budget, max_num_seqs * (1 + num_drafts))
    manager.runner = FakeRunner(num_blocks, block_size, budget, num_drafts)
    return Engine(
        manager.runner,
        manager,
        fake_sampler,
        eos_token_ids=[END_TOKEN],
        tokenizer=None,
        max_num_seqs=max_num_seqs,
    )


def fake_request(
    prompt: Sequence[int], *, seed: int = 1, salt: bytes = b"", index: int = 0, **changes
) -> Request:
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, "temperature": 1.0, **changes})
    return Request(index, None, np.array(prompt, np.int64), params, seed, salt)
