"""The engine: any program of requests, steps, aborts, failures and interrupts, over a model that notices.

The model's cache holds for each token a number made of it and all before it; a wrong block, a token
lost or doubled, or a position computed twice gives other tokens than the request gets alone.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runner"))

from fake_model import VOCAB, expected_tokens, fake_engine, fake_request
from mutation import json_changed

import ernie_kernels as ek
from ernie_kernels.runner.sampler import seed_of_sample

ALLOWED = ()  # what is refused is compared with what must be, in run()
MAX_STEPS = 60
KINDS = ["add", "step", "abort", "abort one", "close", "forget", "fail", "interrupt"]
SHAPE = {
    "num_blocks": (1, 40),
    "block_size": (1, 8),
    "max_num_seqs": (1, 9),
    "budget": (1, 40),
    "num_drafts": (0, 3),
}


def seeds() -> list[Any]:
    several = [["add", [1, 2, 3, 4, 5, 6, 7], 6, 3, 1], ["step", 4], ["add", [1, 2, 3, 4, 9], 9, 1, 2],
               ["step", 2], ["abort one", 0, 1], ["step", 3], ["abort", 1], ["add", [1, 2], 3, 2, 3]]  # fmt: skip
    broken = [["add", [4] * 12, 8, 1, 1], ["add", [4] * 11, 8, 1, 5], ["step", 2], ["interrupt", 40],
              ["step", 1], ["interrupt", 90], ["fail"], ["add", [4] * 9, 5, 2, 7], ["close", 1],
              ["interrupt", 7]]  # fmt: skip
    small = [["add", [i] * 5, 7, 1, i] for i in range(1, 6)] + [["step", 9], ["forget", 2]]
    shape = {"num_blocks": 9, "block_size": 3, "max_num_seqs": 4, "budget": 7, "num_drafts": 1}
    return [
        {**shape, "steps": several},
        {**shape, "num_drafts": 0, "steps": broken},
        {**shape, "steps": broken},
        {**shape, "num_blocks": 5, "max_num_seqs": 9, "budget": 2, "steps": small},
    ]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    if draw.random() < 0.15:
        name = draw.choice(list(SHAPE))
        case[name] = draw.randint(*SHAPE[name])
    elif draw.random() < 0.4:
        steps = case["steps"]
        steps[draw.randint(0, len(steps)) :] = [
            draw.choice(other["steps"]) for _ in range(draw.randint(1, 8))
        ]
    else:
        case["steps"] = json_changed(case["steps"], other["steps"], draw, KINDS)
        if not isinstance(case["steps"], list):
            case["steps"] = []
    return case


def small(value: Any, low: int, high: int) -> int:
    return min(max(value, low), high) if type(value) is int else low


class Interrupter:
    """Raises KeyboardInterrupt before the chosen bytecode of the engine's step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        inside = (
            "runner" in frame.f_code.co_filename and "fake_model" not in frame.f_code.co_filename
        )
        if inside and frame.f_code.co_name != "step":  # which takes the lock
            frame.f_trace_opcodes = True
            self.left -= event == "opcode"
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


class Program:
    def __init__(self, case: Any) -> None:
        shape = {name: small(case[name], *limits) for name, limits in SHAPE.items()}
        self.room = shape["num_blocks"] * shape["block_size"]
        self.num_blocks = shape["num_blocks"]
        self.engine = fake_engine(**shape)
        self.callers: list[list[Any]] = []  # ticket, request, what was aborted of it

    def step(self, step: Any) -> None:
        if isinstance(step, list) and step and step[0] in KINDS:
            getattr(self, f"do_{step[0].replace(' ', '_')}")(*[*step[1:], *[None] * 4][:4])
            self.engine.check()

    def do_add(self, prompt: Any, max_tokens: Any, n: Any, seed: Any) -> None:
        prompt = prompt if isinstance(prompt, list) else [1]
        ids = [small(token, 1, VOCAB) for token in prompt[:20]] or [1]
        request = fake_request(
            ids, max_tokens=small(max_tokens, 1, 20), n=small(n, 1, 6), seed=small(seed, 0, 1 << 30)
        )
        try:
            ticket = self.engine.add_request(request)
        except ek.CapacityError:
            assert len(ids) + request.params.max_tokens > self.room
        else:
            assert len(ids) + request.params.max_tokens <= self.room
            self.callers.append([ticket, request, []])

    def caller(self, index: Any) -> list[Any] | None:
        index = small(index, 0, 100)
        return self.callers[index] if index < len(self.callers) else None

    def do_abort(self, index: Any, *_: Any) -> None:
        if caller := self.caller(index):
            caller[2] += range(caller[1].params.n)
            self.engine.abort(caller[0].request_ids[0])

    def do_abort_one(self, index: Any, answer: Any, *_: Any) -> None:
        if caller := self.caller(index):
            caller[2].append(small(answer, 0, 6))
            self.engine.abort(caller[0].request_ids[0], small(answer, 0, 6))

    def do_close(self, index: Any, *_: Any) -> None:
        if caller := self.caller(index):
            self.callers.remove(caller)
            caller[0].close()

    def do_forget(self, index: Any, *_: Any) -> None:
        if caller := self.caller(index):
            self.callers.remove(caller)

    def do_step(self, count: Any, *_: Any) -> None:
        for _ in range(small(count, 1, 20)):
            self.engine.step()

    def do_interrupt(self, at: Any, *_: Any) -> None:
        before = sys.gettrace()
        try:
            sys.settrace(Interrupter(small(at, 0, 5000)))
            self.engine.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    def do_fail(self, *_: Any) -> None:
        runner = self.engine._runner
        run = runner.run

        def fail(spans: Any) -> None:
            raise MemoryError

        runner.run = fail
        self.engine.step()
        runner.run = run
        failed = [caller for caller in self.callers if caller[0]._call.error is not None]
        self.callers = [caller for caller in self.callers if caller not in failed]

    def finish(self) -> None:
        """All that is left ends, with what it must end with."""
        steps = sum(
            len(s.token_ids) + 2 for ticket, *_ in self.callers for s in ticket._call.sequences
        )
        for _ in range(steps + 2):
            self.engine.step()
        assert not self.engine.has_unfinished
        assert self.engine.stats()["num_free_blocks"] == self.num_blocks
        for ticket, request, aborted in self.callers:
            items = ticket.take()
            assert ticket.is_done
            for sequence in ticket._call.sequences:
                seed = seed_of_sample(request.seed, sequence.index)
                tokens, end = expected_tokens(request.token_ids.tolist(), seed, request.params)
                mine = [item for s, item in items if s is sequence]
                got = [item.token_id for item in mine if item.token_id is not None]
                is_cut = mine[-1].finish_reason == "abort"
                assert not is_cut or sequence.index in aborted
                assert got == (tokens[: len(got)] if is_cut else tokens)
                assert is_cut or mine[-1].finish_reason == end


def run(case: Any) -> None:
    program = Program(case)
    for step in case["steps"][:MAX_STEPS]:
        program.step(step)
    program.finish()
