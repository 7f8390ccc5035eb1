"""What is left of a call when it is over: nothing."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from fake_model import fake_engine, fake_request

import ernie_kernels as ek


def run(engine, **changes) -> None:
    for _ in engine.outputs(engine.add_request(fake_request([1, 2, 3], max_tokens=5, **changes))):
        pass


def give_up(engine) -> None:
    ticket = engine.add_request(fake_request([1, 2, 3], n=2, max_tokens=20))
    engine.step()
    ticket.close()


def fail(engine) -> None:
    run_model = engine._runner.run

    def run_out_of_memory(_):
        engine._runner.run = run_model
        raise ek.OutOfMemoryError("no room")

    engine._runner.run = run_out_of_memory
    with pytest.raises(ek.OutOfMemoryError):
        run(engine, n=2)


@pytest.mark.parametrize(
    "act",
    [
        run,
        lambda engine: run(engine, n=3),
        lambda engine: engine.forward([np.array([1, 2, 3])], 50),
        give_up,
        fail,
    ],
    ids=["one answer", "three answers", "forward", "given up", "failed"],
)
def test_no_garbage(act):
    """All is freed at once, without the collector: that may come late, or be switched off."""
    engine = fake_engine()
    act(engine)
    engine.stats()
    gc.collect()
    gc.disable()
    try:
        act(engine)
        engine.stats()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_logits_belong_to_the_caller_alone():
    """They may be gigabytes, and no further call may come."""
    engine = fake_engine()
    logits = engine.forward([np.array([1, 2, 3])], 50)
    watch = weakref.ref(logits[0])
    del logits
    assert watch() is None
