"""KeyboardInterrupt at any place in a step: the others lose nothing, the interrupted one leaves nothing."""

from __future__ import annotations

import os
import random
import sys
from collections import deque
from pathlib import Path
from typing import Self

import pytest
from fake_model import expected_tokens, fake_engine, fake_request

import ernie_kernels.runner.engine
from ernie_kernels.runner.sampler import seed_of_sample
from ernie_kernels.runner.text_stream import TextStream

# tests/long/run.sh raises it.
INTERRUPTS = int(os.environ.get("ERNIE_TEST_INTERRUPTS", "120"))
RUNNER = str(Path(ernie_kernels.runner.engine.__file__).parent)


class Interrupter:
    """Raises KeyboardInterrupt before the chosen one of all bytecodes that run in our package.

    Not in functions that take the lock: the interpreter looks for signals neither between taking a
    lock by ``with`` and entering the block, nor between leaving the block and giving the lock back.
    """

    HOLDERS = ("step", "stats", "check", "close")

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(RUNNER):
            return self
        frame.f_trace_opcodes = True
        holds = frame.f_code.co_name in self.HOLDERS
        if event == "opcode" and not (holds and frame.f_code.co_filename.endswith("engine.py")):
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self

    def __enter__(self) -> Self:
        sys.settrace(self)
        return self

    def __exit__(self, *_) -> None:
        sys.settrace(None)


class Bytes:
    """A tokenizer of two-byte characters, each byte a token: half of all tokens end in the middle."""

    decodes_prefix = False

    @staticmethod
    def decoded_bytes(token_id: int, *, skip_special_tokens: bool) -> bytes:
        return bytes([0xC3 if token_id % 2 else 0xA0 + token_id // 2])


def text_of(tokens: list[int], stop: list[str]) -> str:
    stream = TextStream(Bytes, stop)
    parts = []
    for token in tokens:
        text, found = stream.push(token)
        parts.append(text)
        if found is not None:
            return "".join(parts)
    return "".join(parts) + stream.finish()[0]


def requests_of(draw: random.Random) -> list:
    start = [draw.randrange(1, 40) for _ in range(9)]
    return [
        fake_request(
            [*start[: draw.randrange(1, 9)], draw.randrange(1, 40)],
            index=index,
            seed=draw.randrange(1 << 16),
            n=draw.choice((1, 1, 2)),
            max_tokens=draw.randint(1, 10),
            ignore_eos=False,
        )
        for index in range(3)
    ]


def interrupted_life(seed: int, at: int | None) -> int:
    """Two callers and a third that is interrupted; returns how many bytecodes there were."""
    draw = random.Random(seed)
    engine = fake_engine(
        num_blocks=9,
        block_size=4,
        max_num_seqs=draw.choice((2, 4)),
        budget=7,
        num_drafts=draw.choice((0, 1, 3)),
    )
    engine._tokenizer = Bytes
    groups = [requests_of(draw) for _ in range(3)]
    others = [engine.add_requests(group) for group in groups[:2]]
    taken: list[list] = [[], []]
    engine.step()
    interrupter = Interrupter(-1 if at is None else at)
    try:
        with interrupter:
            mine = engine.add_requests(groups[2])
            for index, _ in enumerate(engine.outputs(mine)):
                if index == 5:
                    engine.abort(mine.request_ids[0])
                if index == 12:
                    break
            mine.close()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    mine = None
    engine.check()
    assert len(engine._calls) == 2
    while not all(ticket.is_done for ticket in others):
        for ticket, items in zip(others, taken, strict=True):
            items += ticket.take()
        engine.step()
        engine.check()
    assert engine.stats()["num_free_blocks"] == 9
    for group, items in zip(groups, taken, strict=False):
        for request in group:
            compare(request, items)
    return interrupter.count


def compare(request, items, *, text: bool = True) -> None:
    for index in range(request.params.n):
        mine = [
            item
            for sequence, item in items
            if (sequence.request_index, sequence.index) == (request.index, index)
        ]
        seed = seed_of_sample(request.seed, index)
        tokens, end = expected_tokens(request.token_ids.tolist(), seed, request.params)
        assert [item.token_id for item in mine if item.token_id is not None] == tokens
        assert [item.finish_reason for item in mine if item.finish_reason] == [end]
        shown = tokens[:-1] if end == "stop" else tokens
        assert not text or "".join(item.delta for item in mine) == text_of(shown, [])


def test_interrupts_at_random_bytecodes():
    draw = random.Random(5)
    lengths: dict[int, int] = {}
    for number in range(INTERRUPTS):
        seed = number % 25
        if seed not in lengths:
            lengths[seed] = interrupted_life(seed, None)
            assert lengths[seed] > 1000
        interrupted_life(seed, draw.randint(1, lengths[seed]))
    print(
        f"\n{INTERRUPTS} interrupts, in {len(lengths)} lives of {sum(lengths.values())} bytecodes"
    )


@pytest.mark.parametrize("at", [1, 2, 3, 10**9])
def test_the_first_bytecodes_and_none(at):
    interrupted_life(0, at)


class InterruptingNews(deque):
    """Interrupts its n-th entry: the token counts already, and nobody has been told."""

    left = 0

    def append(self, sequence) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().append(sequence)


@pytest.mark.parametrize("nth", range(1, 11))
def test_interrupted_before_the_caller_is_told(nth):
    engine = fake_engine()
    requests = [fake_request([1, 2, i], index=i, max_tokens=5, seed=i) for i in range(2)]
    ticket = engine.add_requests(requests)
    news = InterruptingNews()
    news.left = nth
    ticket._call.news = news
    for sequence in ticket._call.sequences:
        sequence.news = news
    items = []
    for _ in range(6):
        try:
            engine.step()
        except KeyboardInterrupt:
            assert nth > 0
            nth = 0
        items += ticket.take()
    assert nth == 0
    engine.step()  # mends what the last one left
    items += ticket.take()
    assert ticket.is_done
    for request in requests:
        compare(request, items, text=False)


class InterruptedQueue(deque):
    """What is first in it has been dealt with, but an interrupt keeps it from being taken out."""

    is_due = True

    def popleft(self):
        if self.is_due:
            self.is_due = False
            raise KeyboardInterrupt
        return super().popleft()


@pytest.mark.parametrize("queue", ["_arrived", "_aborted", "_ended"])
def test_interrupted_between_the_steps(queue):
    """Who has just been let in is not let in again; who has just gone has gone."""
    engine = fake_engine(num_blocks=40, max_num_seqs=8)
    tickets = [engine.add_request(fake_request([i] * 5, seed=i)) for i in range(1, 6)]
    engine.step()
    engine.abort(tickets[0].request_ids[0])
    tickets[1].close()
    tickets.append(engine.add_request(fake_request([9] * 5, seed=9)))
    setattr(engine, queue, InterruptedQueue(getattr(engine, queue)))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check()
    while engine.has_unfinished:
        engine.step()
    for ticket, seed in zip(tickets, [1, 2, 3, 4, 5, 9], strict=True):
        (sequence,) = ticket._call.sequences
        if seed <= 2:
            assert sequence.finish_reason == "abort"
        else:
            expected, _ = expected_tokens([seed] * 5, seed, sequence.params)
            assert sequence.output_token_ids == expected


def test_interrupted_twice():
    """The second time while the first one is being mended."""
    for at in range(1, 600, 13):
        engine = fake_engine(num_blocks=9, block_size=4)
        requests = requests_of(random.Random(at))
        ticket = engine.add_requests(requests)
        for _ in range(3):
            try:
                with Interrupter(at):
                    engine.step()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
        items = []
        while not ticket.is_done:
            engine.step()
            engine.check()
            items += ticket.take()
        assert engine.stats()["num_free_blocks"] == 9
        for request in requests:
            seed = request.seed
            tokens, _ = expected_tokens(request.token_ids.tolist(), seed, request.params)
            first = [i for s, i in items if (s.request_index, s.index) == (request.index, 0)]
            assert [i.token_id for i in first if i.token_id is not None] == tokens
