"""The line in the log: every five seconds while busy, never while idle."""

from __future__ import annotations

import logging

import pytest
from fake_model import fake_engine, fake_request

from ernie_kernels.runner.throughput_log import Load, ThroughputLog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "ernie_kernels")
    return lambda: caplog.messages


def load_of(prompt_tokens: int, generated_tokens: int) -> Load:
    return Load(3, 7, prompt_tokens, generated_tokens, num_blocks=40, num_free_blocks=10)


def load_with_drafts(drafted: int, accepted: int) -> Load:
    return Load(1, 0, 0, 0, 4, 2, drafted_tokens=drafted, accepted_tokens=accepted)


def steps(log: ThroughputLog, clock: Clock, seconds: float, tokens: int) -> None:
    """A step each half second, from ``tokens`` generated and twice as many read on."""
    for _ in range(int(seconds * 2)):
        log.step_begins(lambda: load_of(2 * tokens, tokens))  # noqa: B023
        clock.now += 0.5
        tokens += 1
        log.step_ends(lambda: load_of(2 * tokens, tokens))  # noqa: B023
        log.write()


def test_a_line_every_five_seconds(clock, lines):
    log = ThroughputLog(clock)
    steps(log, clock, 4.5, 0)
    assert lines() == []
    steps(log, clock, 10.5, 9)
    expected = "3 running, 7 waiting, 4.0 prompt tok/s, 2.0 generated tok/s, KV cache 75.0 %"
    assert lines() == [expected] * 3


def test_time_without_work_does_not_count(clock, lines):
    log = ThroughputLog(clock)
    steps(log, clock, 4.5, 0)
    clock.now += 1000
    steps(log, clock, 4.5, 9)
    assert lines() == []
    steps(log, clock, 0.5, 18)
    assert lines() == [
        "3 running, 7 waiting, 4.0 prompt tok/s, 2.0 generated tok/s, KV cache 75.0 %"
    ]


def test_short_calls_one_after_the_other_are_told_of(clock, lines):
    log = ThroughputLog(clock)
    for number in range(4):
        steps(log, clock, 1, 2 * number)
        clock.now += 0.6
    assert len(lines()) == 1


def test_drafts_of_the_interval_are_told_of(clock, lines):
    log = ThroughputLog(clock)
    for drafted, accepted in ((0, 0), (40, 10), (50, 19), (50, 19)):
        log.step_begins(lambda: load_with_drafts(0, 0))
        clock.now += 5
        log.step_ends(lambda: load_with_drafts(drafted, accepted))  # noqa: B023
        log.write()
    start = "1 running, 0 waiting, 0.0 prompt tok/s, 0.0 generated tok/s, KV cache 50.0 %"
    assert lines() == [
        start,
        f"{start}, 10 of 40 drafts accepted (25.0 %)",
        f"{start}, 9 of 10 drafts accepted (90.0 %)",
        start,
    ]


def test_drafts_before_an_idle_time_are_not_told_of(clock, lines):
    log = ThroughputLog(clock)
    log.step_begins(lambda: load_with_drafts(0, 0))
    clock.now += 4
    log.step_ends(lambda: load_with_drafts(40, 10))
    clock.now += 1000
    log.step_begins(lambda: load_with_drafts(40, 10))
    clock.now += 5
    log.step_ends(lambda: load_with_drafts(50, 19))
    log.write()
    assert [line.rpartition(", ")[2] for line in lines()] == ["9 of 10 drafts accepted (90.0 %)"]


def test_an_engine_tells(lines, clock):
    engine = fake_engine(num_blocks=8, max_num_seqs=1)
    engine._log = ThroughputLog(clock)
    # The first token is of the prompt's step; the end leaves a request that waits no more.
    tickets = [engine.add_request(fake_request([1] * 7, max_tokens=9, seed=5)) for _ in range(3)]
    engine.step()
    clock.now += 4
    engine.step()
    engine.step()
    assert lines() == []
    clock.now += 1
    engine.step()
    assert lines() == [
        "1 running, 2 waiting, 1.4 prompt tok/s, 0.8 generated tok/s, KV cache 37.5 %"
    ]
    del tickets
    clock.now += 100
    engine.stats()
    engine.step()
    assert len(lines()) == 1
