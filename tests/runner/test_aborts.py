"""Calls that are given up, aborted or that fail: what they held is free, and the others go on."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Self

import pytest
from fake_model import expected_tokens, fake_engine, fake_request

import ernie_kernels as ek
from ernie_kernels.runner.sequence import Sequence


def test_a_ticket_that_is_forgotten_takes_its_requests_along():
    engine = fake_engine()
    ticket = engine.add_requests([fake_request([1] * 9, max_tokens=30), fake_request([2], n=3)])
    for _ in range(3):
        engine.step()
    assert engine.stats()["num_free_blocks"] < 16
    thread_tickets = [ticket]
    del ticket
    collector = threading.Thread(target=thread_tickets.clear)
    collector.start()
    collector.join()
    assert engine.stats()["num_free_blocks"] == 16
    assert not engine.has_unfinished


def test_forgetting_a_stream_runs_no_code_that_could_swallow_an_interrupt():
    """Python loses what is raised while a forgotten generator ends, and raises Ctrl-C in calls."""
    calls = []
    with ek.LLM.from_pretrained(max_model_len=128) as llm:
        stream = llm.generate(prompt_token_ids=[[5, 6, 7]], stream=True)
        next(stream)
        before = sys.gettrace()
        sys.settrace(lambda frame, *_: calls.append(frame.f_code.co_name))
        try:
            del stream
        finally:
            sys.settrace(before)
        assert set(calls) <= {"chunks", "stream", "outputs"}  # the suspended frames themselves
        assert llm.stats()["running"] == 0


@pytest.mark.parametrize("place", ["_sample", "_chunk"])
def test_an_interrupted_call_ends_although_its_traceback_is_kept(place):
    """As an interactive Python keeps it."""

    def interrupt(frame, *_):
        if frame.f_code.co_name == place:
            sys.settrace(None)
            raise KeyboardInterrupt

    with ek.LLM.from_pretrained(max_model_len=128) as llm:
        stream = llm.generate(prompt_token_ids=[[5, 6, 7]], stream=True)
        next(stream)
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt) as kept:
                next(stream)
        finally:
            sys.settrace(before)
        assert llm.stats()["running"] == 0
        assert kept.value.__traceback__ is not None


def test_a_stream_collected_while_the_lock_is_held_does_not_wait_for_it():
    engine = fake_engine()
    stream = engine.outputs(engine.add_request(fake_request([1] * 9, max_tokens=30)))
    next(stream)
    with engine._lock:
        stream.close()
        del stream
        gc.collect()
    assert engine.stats()["num_free_blocks"] == 16


@pytest.mark.parametrize("when", ["waiting", "running", "finished"])
def test_abort(when):
    engine = fake_engine(max_num_seqs=1)
    first = engine.add_request(fake_request([1, 2, 3], max_tokens=4, seed=2))
    second = engine.add_request(fake_request([4, 5, 6], max_tokens=4, seed=2))
    steps = {"waiting": 1, "running": 6, "finished": 20}[when]
    for _ in range(steps):
        engine.step()
    engine.abort(second.request_ids[0])
    engine.abort(10**6)  # nobody's
    engine.step()
    engine.check()
    (sequence,) = second._call.sequences
    taken = [item for _, item in second.take()]
    expected, _ = expected_tokens([4, 5, 6], 2, sequence.params)
    if when == "finished":
        assert sequence.finish_reason == "length"
        assert sequence.output_token_ids == expected
    else:
        assert second.is_done
        assert taken[-1].finish_reason == "abort"
        assert sequence.output_token_ids == expected[: len(taken) - 1]
        assert (len(taken) == 1) == (when == "waiting")
    while engine.has_unfinished:
        engine.step()
    assert first._call.sequences[0].finish_reason == "length"
    assert engine.stats()["num_free_blocks"] == 16


def test_several_aborts_before_one_step():
    engine = fake_engine(max_num_seqs=2)
    tickets = [engine.add_request(fake_request([i, 2, 3], max_tokens=9)) for i in range(1, 5)]
    engine.step()
    for ticket in tickets[:3]:
        engine.abort(ticket.request_ids[0])
    engine.step()
    reasons = [ticket._call.sequences[0].finish_reason for ticket in tickets]
    assert reasons == ["abort", "abort", "abort", None]


class Arrivals(deque):
    """When the step has let in who has come, and before it looks further, another thread acts."""

    act: Callable[[], None] | None = None

    def popleft(self):
        self.is_next = True
        return super().popleft()

    def __bool__(self) -> bool:
        if not len(self) and self.act and getattr(self, "is_next", False):
            act, self.act = self.act, None
            act()
            return False
        return len(self) > 0


@pytest.mark.parametrize("how", ["abort", "close", "forget"])
def test_come_and_gone_while_others_are_let_in(how):
    """Too late for this step, and so is its end: both are for the next one."""
    engine = fake_engine()
    engine._arrived = Arrivals()
    late = []

    def come_and_go():
        late.append(engine.add_request(fake_request([4, 5, 6], max_tokens=30)))
        if how == "abort":
            engine.abort(late[0].request_ids[0])
        elif how == "close":
            late[0].close()
        else:
            late.clear()

    engine._arrived.act = come_and_go
    first = engine.add_request(fake_request([1, 2, 3], max_tokens=8))
    engine.step()
    assert engine._arrived.act is None
    engine.step()
    assert engine.stats()["running"] == 1
    assert engine.num_prompt_tokens == 3
    for _ in engine.outputs(first):
        pass
    assert not engine.has_unfinished


class Effort:
    """Counts the lines of Python that run, and the comparisons of sequences in lists and deques."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        self._patch = monkeypatch

    def _line(self, *_):
        self.count += 1
        return self._line

    def _equal(self, one, other) -> bool:
        self.count += 1
        return one is other

    def __enter__(self) -> Self:
        self._patch.setattr(Sequence, "__eq__", lambda one, other: self._equal(one, other))
        sys.settrace(self._line)
        return self

    def __exit__(self, *_) -> None:
        sys.settrace(None)
        self._patch.undo()


@pytest.mark.parametrize("how", ["abort", "close"])
def test_many_that_wait_are_given_up_at_once(how, monkeypatch):
    """Behind as many others, and while all callers wait: not in quadratic time."""
    engine = fake_engine(num_blocks=4, max_num_seqs=1)
    requests = [fake_request([1], index=i, n=8) for i in range(250)]
    first = engine.add_requests(requests)
    engine.step()
    with Effort(monkeypatch) as adding:
        second = engine.add_requests(requests)
        engine.step()
    with Effort(monkeypatch) as giving_up:
        if how == "abort":
            for request_id in second.request_ids:
                engine.abort(request_id)
        else:
            second.close()
        engine.step()
    assert engine.stats()["waiting"] + engine.stats()["running"] == 8 * 250
    assert 8 * 250 < giving_up.count < 2 * adding.count
    assert not first.is_done


def test_abort_of_one_answer():
    engine = fake_engine()
    request = fake_request([1, 2, 3], n=3, max_tokens=6)
    ticket = engine.add_request(request)
    for _ in range(3):
        engine.step()
    engine.abort(ticket.request_ids[0], 1)
    while not ticket.is_done:
        engine.step()
        ticket.take()
    reasons = [sequence.finish_reason for sequence in ticket._call.sequences]
    assert reasons == ["length", "abort", "length"]


def test_an_abort_during_a_step_takes_effect_at_its_end():
    engine = fake_engine()
    ticket = engine.add_request(fake_request([1, 2, 3], max_tokens=20))
    engine.step()
    run = engine._runner.run

    def run_and_abort(spans):
        engine.abort(ticket.request_ids[0])
        return run(spans)

    engine._runner.run = run_and_abort
    engine.step()
    assert not engine.has_unfinished
    assert engine._block_manager.num_free == 16


def test_a_failing_step_ends_the_calls_that_it_ran_and_no_other():
    engine = fake_engine(max_num_seqs=1)
    first = engine.add_requests([fake_request([1, 2, 3], max_tokens=9), fake_request([7], index=1)])
    second = engine.add_request(fake_request([4, 5, 6], max_tokens=5, seed=4))
    engine.step()
    run = engine._runner.run

    def fail(spans):
        engine._runner.run = run
        raise ek.OutOfMemoryError("no room")

    engine._runner.run = fail
    engine.step()
    with pytest.raises(ek.OutOfMemoryError, match="no room"):
        first.take()
    engine.check()
    for _ in engine.outputs(second):
        pass
    (sequence,) = second._call.sequences
    assert sequence.output_token_ids == expected_tokens([4, 5, 6], 4, sequence.params)[0]
    assert engine.stats()["num_free_blocks"] == 16


@pytest.mark.parametrize("place", ["schedule", "advance", "add"])
def test_a_step_that_fails_before_or_after_the_model(place, monkeypatch):
    """Nobody is known to be at fault: all calls end, and the engine goes on."""
    engine = fake_engine()
    ticket = engine.add_request(fake_request([1, 2, 3]))

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine._scheduler, place, fail)
        with pytest.raises(MemoryError):
            for _ in engine.outputs(ticket):
                pass
    engine.check()
    assert engine.stats()["num_free_blocks"] == 16
    request = fake_request([1, 2, 3], seed=8)
    ticket = engine.add_request(request)
    for _ in engine.outputs(ticket):
        pass
    (sequence,) = ticket._call.sequences
    assert sequence.output_token_ids == expected_tokens([1, 2, 3], 8, request.params)[0]


def test_a_closed_engine_refuses():
    engine = fake_engine()
    ticket = engine.add_request(fake_request([1]))
    engine.close()
    for call in (
        engine.step,
        lambda: next(engine.outputs(ticket)),
        lambda: engine.add_requests([]),
    ):
        with pytest.raises(ek.ArgumentError, match="closed"):
            call()


def test_steps_without_work_do_nothing():
    engine = fake_engine()
    engine.step()
    assert engine._runner.num_spans == 0
    assert list(engine.outputs(engine.add_requests([]))) == []
