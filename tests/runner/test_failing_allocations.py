"""Memory runs out at any place of a step: the engine stays whole, and who is not hit loses nothing."""

from __future__ import annotations

import gc
import os

import pytest
from fake_model import expected_tokens, fake_engine, fake_request

from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.requests import Request
from ernie_kernels.runner.ticket import Ticket

# CPython's own means of failing the n-th allocation of its objects.
memory = pytest.importorskip("_testcapi", reason="this Python comes without its test module")

# tests/long/run.sh raises it.
FAILURES = int(os.environ.get("ERNIE_TEST_FAILING_ALLOCATIONS", "400"))
ALLOCATIONS = 1500  # more than what is done while they fail needs


@pytest.fixture(autouse=True)
def _only_what_the_test_makes_is_collected():
    """Among all that a session has made, the collection before each trial takes most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def act(engine: Engine, request: Request) -> None:
    """One caller's requests come and go while others run."""
    ticket = engine.add_request(request)
    for _ in range(4):
        engine.step(ticket)
    engine.abort(ticket.request_ids[0] - 1)
    engine.step()
    ticket.close()
    engine.step()


def act_without_memory(engine: Engine, request: Request, first: int, last: int) -> bool:
    """Allocations number ``first`` to ``last - 1`` fail; returns whether that was an error."""
    gc.collect()
    gc.disable()
    memory.set_nomemory(first, last)
    try:
        act(engine, request)
    except MemoryError:
        return True
    finally:
        memory.remove_mem_hooks()
        gc.enable()
    return False


def finish(engine: Engine, ticket: Ticket, request: Request) -> bool:
    """Take the rest of a ticket, and compare; False if its step failed."""
    try:
        while not ticket.is_done:
            engine.step()
            ticket.take()
    except MemoryError:
        return False
    (sequence,) = ticket._call.sequences
    tokens, end = expected_tokens(request.token_ids.tolist(), request.seed, request.params)
    if sequence.finish_reason != "abort":
        assert (sequence.output_token_ids, sequence.finish_reason) == (tokens, end)
    assert sequence.output_token_ids == tokens[: sequence.num_output_tokens]
    return True


@pytest.mark.parametrize("num_drafts", [0, 2])
@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_allocations_that_fail(length, num_drafts):
    errors, failed, finished = 0, 0, 0
    firsts = range(0, ALLOCATIONS, max(1, ALLOCATIONS * 3 // FAILURES))
    for first in firsts:
        engine = fake_engine(
            num_blocks=9, block_size=4, max_num_seqs=3, budget=7, num_drafts=num_drafts
        )
        requests = [
            fake_request([1, 2, 3, 4, 5, i], seed=7 * i + 1, max_tokens=8) for i in range(4)
        ]
        tickets = [engine.add_request(request) for request in requests[:3]]
        engine.step()
        errors += act_without_memory(engine, requests[3], first, first + length)
        engine.check()
        for request in requests[:3]:
            if finish(engine, tickets.pop(0), request):
                finished += 1
            else:
                failed += 1
            engine.check()
        stats = engine.stats()
        assert stats["num_free_blocks"] == 9
        assert (stats["running"], stats["waiting"]) == (0, 0)
        for _ in engine.outputs(engine.add_request(requests[3])):
            pass
        assert not engine.has_unfinished
    assert errors + failed > finished / 20
    print(
        f"\n{len(firsts)} failures, {errors} errors of calls, {failed} of requests in their steps, "
        f"{finished} requests finished"
    )
