"""Callers in several threads: generating, streaming, giving up, aborting, interrupted, all at once."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest
from fake_model import expected_tokens, fake_engine, fake_request

import ernie_kernels as ek
from ernie_kernels.runner.throughput_log import ThroughputLog

ROUNDS = 100


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)


class Caller:
    """What one thread does for a while; its errors are kept for the test."""

    def __init__(self, engine, seed: int) -> None:
        self.engine = engine
        self.draw = random.Random(seed)
        self.num_finished = 0
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            for _ in range(ROUNDS):
                self.round()
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def round(self) -> None:
        draw = self.draw
        prompts = [
            [draw.randrange(1, 5)] * draw.randrange(1, 12) for _ in range(draw.choice((1, 3)))
        ]
        requests = [
            fake_request(ids, index=i, seed=draw.randrange(1 << 16), max_tokens=draw.randint(1, 9))
            for i, ids in enumerate(prompts)
        ]
        ticket = self.engine.add_requests(requests)
        aborted = draw.choice((None, None, None, 0))
        gives_up_after = draw.choice((None, None, None, 2))
        items = []
        for step, taken in enumerate(self.engine.outputs(ticket)):
            items += taken
            if step == 1 and aborted is not None:
                self.engine.abort(ticket.request_ids[aborted])
            if step == gives_up_after:
                return
        for request in requests:
            mine = [item for sequence, item in items if sequence.request_index == request.index]
            tokens, end = expected_tokens(request.token_ids.tolist(), request.seed, request.params)
            got = [item.token_id for item in mine if item.token_id is not None]
            assert got == tokens[: len(got)]
            assert mine[-1].finish_reason == end or request.index == aborted
            assert got == tokens or mine[-1].finish_reason == "abort"
            self.num_finished += 1


def start(callers) -> list[threading.Thread]:
    threads = [threading.Thread(target=caller) for caller in callers]
    for thread in threads:
        thread.start()
    return threads


def join(threads, callers, engine) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for caller in callers:
        assert caller.error is None, caller.error
        assert caller.num_finished > ROUNDS / 2
    gc.collect()
    engine.check()
    stats = engine.stats()
    assert stats["num_free_blocks"] == 8
    assert (stats["running"], stats["waiting"], len(engine._calls)) == (0, 0, 0)


def test_four_threads():
    engine = fake_engine(num_blocks=8, block_size=4, max_num_seqs=5)
    callers = [Caller(engine, seed) for seed in range(4)]
    join(start(callers), callers, engine)
    assert engine.stats()["preemptions"] > 0


def test_interrupts_of_one_do_not_reach_the_others():
    """Real signals, at random moments of the main thread's calls."""
    engine = fake_engine(num_blocks=8, block_size=4, max_num_seqs=5)
    callers = [Caller(engine, seed) for seed in range(3)]
    draw = random.Random(1)
    interrupted = 0
    may_interrupt = False

    def interrupt(*_):
        nonlocal may_interrupt
        if may_interrupt:
            may_interrupt = False
            raise KeyboardInterrupt

    def send_signals():
        while any(thread.is_alive() for thread in threads):
            time.sleep(draw.uniform(1e-4, 2e-2))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    threads = start(callers)
    sender = threading.Thread(target=send_signals)
    sender.start()
    try:
        mine = Caller(engine, 9)
        while sender.is_alive():
            try:
                may_interrupt = True
                # Not for ever, should one get lost.
                for _ in range(ROUNDS):
                    mine.round()
                may_interrupt = False
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    join(threads, callers, engine)
    assert interrupted > 5


def test_a_caller_hears_of_its_end_while_another_goes_on():
    """The thread that steps does not keep the lock from those who wait for it."""
    engine = fake_engine(num_blocks=60, block_size=4)
    ends = []

    def long_call():
        request = fake_request([1], max_tokens=200, seed=3)
        while not ends:
            for _ in engine.outputs(engine.add_request(request)):
                pass

    thread = threading.Thread(target=long_call)
    thread.start()
    try:
        begin = time.monotonic()
        for _ in range(20):
            for _ in engine.outputs(engine.add_request(fake_request([2], max_tokens=5))):
                pass
        assert time.monotonic() - begin < 30
    finally:
        ends.append(True)
        thread.join()


@pytest.mark.parametrize("name", ["stats", "check", "close"])
def test_who_asks_between_steps_is_let_in_soon(name):
    """Not when the caller who steps has nothing left to do: that may be in hours."""
    engine = fake_engine(num_blocks=300, block_size=4)
    ticket = engine.add_request(fake_request([1], max_tokens=1000, seed=3))
    run = engine._runner.run
    began = threading.Event()
    steps = []

    def run_slowly(spans):
        steps.append(len(spans))
        began.set()
        time.sleep(2e-3)
        return run(spans)

    def long_call():
        with contextlib.suppress(ek.ArgumentError):  # closed
            for _ in engine.outputs(ticket):
                pass

    engine._runner.run = run_slowly
    thread = threading.Thread(target=long_call)
    thread.start()
    waited = []
    for _ in range(1 if name == "close" else 20):
        began.clear()
        began.wait()
        before = len(steps)
        getattr(engine, name)()
        waited.append(len(steps) - before)
    engine.close()
    thread.join()
    assert sum(waited) < 5 * len(waited)


def in_time(call: Callable[[], None]) -> None:
    """Fails where the call waits for itself: nothing else would end it."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_log_handler_may_ask_the_engine():
    engine = fake_engine()
    engine._log = ThroughputLog(itertools.count(step=10).__next__)
    answers = []

    class Handler(logging.Handler):
        def emit(self, record):
            answers.append(engine.stats())

    logger, handler = logging.getLogger("ernie_kernels"), Handler()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        in_time(engine.step)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert len(answers) == 1


@pytest.mark.parametrize("name", ["stats", "step", "close"])
def test_a_step_that_is_called_from_within_a_step_is_refused(name):
    """By a signal handler or a finaliser: it would wait for the step that waits for it."""
    engine = fake_engine()
    ticket = engine.add_request(fake_request([1, 2]))
    run = engine._runner.run

    def ask_and_run(spans):
        engine._runner.run = run
        with pytest.raises(ek.ArgumentError, match="from within a step of its own thread"):
            getattr(engine, name)()
        return run(spans)

    engine._runner.run = ask_and_run
    in_time(engine.step)
    assert engine._runner.run == run
    assert len(ticket.take()) == 1


def test_an_interrupted_wait_holds_nobody_up():
    """Who gives up waiting for a step is not waited for."""

    def interrupt(*_):
        raise KeyboardInterrupt

    engine = fake_engine()
    # Not SIGINT: a process in the background may have been told to ignore it.
    before = signal.signal(signal.SIGUSR1, interrupt)
    main_thread = threading.main_thread().ident
    timer = threading.Timer(0.1, signal.pthread_kill, (main_thread, signal.SIGUSR1))
    try:
        timer.start()
        with engine._lock, pytest.raises(KeyboardInterrupt):
            engine.step()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert not engine._waiting
