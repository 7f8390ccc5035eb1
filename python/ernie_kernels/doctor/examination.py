"""Runs everything and keeps what it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.doctor.fact import Fact
from ernie_kernels.doctor.facts import all_facts, described
from ernie_kernels.doctor.op_checks import CHECKS, cases
from ernie_kernels.verify.bounds import Expected
from ernie_kernels.verify.report import PartResult, worst_of

DEMO_PROMPT = "Return a list of"
DEMO_ANSWER = " tuples."


@dataclass(frozen=True, slots=True)
class OpResult:
    """One op on one device: its worst element. ``problem`` is None where it is within its bound."""

    op: str
    device: str
    dtype: str
    error: float | None
    bound: float | None
    milliseconds: float | None
    problem: str | None = None


@dataclass(slots=True)
class Examination:
    facts: list[Fact] = field(default_factory=list)
    ops: list[OpResult] = field(default_factory=list)
    demo: list[Fact] = field(default_factory=list)  # of each device

    @property
    def problems(self) -> list[str]:
        found = [
            f"{fact.section}: {fact.name}: {fact.problem}"
            for fact in [*self.facts, *self.demo]
            if fact.problem is not None
        ]
        found += [
            f"{result.op}, {result.dtype} on {result.device}: {result.problem}"
            for result in self.ops
            if result.problem is not None
        ]
        return found

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, dict[str, Any]] = {}
        for fact in self.facts:
            facts.setdefault(fact.section, {})[fact.name] = fact.value
        return {
            **facts,
            "ops": [{**asdict(each), "passed": each.problem is None} for each in self.ops],
            "demo": {fact.name: fact.value for fact in self.demo},
            "problems": self.problems,
            "healthy": not self.problems,
        }


def examine() -> Examination:
    """Look at the machine, check every op, let the demo model answer. Takes seconds."""
    found = Examination()
    found.facts += all_facts()
    try:
        found.ops += _check_ops()
    except Exception as error:  # noqa: BLE001
        found.facts.append(Fact("ops", "self-test", None, described(error)))
    found.demo += _ask_demo()
    return found


def _check_ops() -> Iterator[OpResult]:
    for name, case in cases():
        try:
            worst = _worst(name, CHECKS[name][0](case))
        except Exception as failure:  # noqa: BLE001
            yield OpResult(name, case.device, case.dtype, None, None, None, described(failure))
            continue
        problem = None
        if not worst.passed:
            problem = f"error {worst.error:.2g} is beyond its bound {worst.bound:.2g}"
        milliseconds = case.seconds * 1e3
        error = worst.error if np.isfinite(worst.error) else None
        yield OpResult(name, case.device, case.dtype, error, worst.bound, milliseconds, problem)


def _worst(name: str, pairs: Iterator[tuple[Any, Expected]]) -> PartResult:
    results = []
    for actual, expected in pairs:
        values = actual.numpy() if isinstance(actual, Tensor) else actual
        if values.shape != expected.value.shape:
            raise ValueError(f"shape {values.shape} instead of {expected.value.shape}")
        results.append(PartResult.of(name, values.astype(np.float64), expected))
    return worst_of(results)


def _ask_demo() -> Iterator[Fact]:
    try:
        devices = ["cpu", *(f"cuda:{index}" for index in range(_core.device_count()))]
    except Exception as error:  # noqa: BLE001
        yield Fact("demo model", "devices", None, described(error))
        return
    for device in devices:
        try:
            answer = _answer(device)
        except Exception as error:  # noqa: BLE001
            yield Fact("demo model", device, None, described(error))
            continue
        problem = None
        if answer != DEMO_ANSWER:
            problem = f"{DEMO_PROMPT!r} is answered {answer!r}, expected {DEMO_ANSWER!r}"
        yield Fact("demo model", device, answer, problem)


def _answer(device: str) -> str | None:
    # Here: a tokenizer that cannot be imported is a line of the report too.
    from ernie_kernels.llm import LLM
    from ernie_kernels.runner.sampling import SamplingParams

    with LLM.from_pretrained(None, device=device, max_model_len=64, max_num_seqs=1) as llm:
        (output,) = llm.generate(DEMO_PROMPT, SamplingParams(max_tokens=8))
    return output.outputs[0].text
