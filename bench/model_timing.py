"""Times of whole-model cases: engines in turn, the next one only when all threads are at rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model_peers import Engine

# Rounds after which only the faster of an engine's settings goes on.
TRIAL_ROUNDS = 3


@dataclass(frozen=True)
class ModelCase:
    """A prompt of random tokens, and how many tokens are decoded and timed after the first one.

    Without any, the time is that of the prompt and its one token.
    """

    prompt_tokens: int
    decoded_tokens: int = 0

    @property
    def name(self) -> str:
        if self.decoded_tokens:
            return f"decode after {self.prompt_tokens}"
        return f"prefill {self.prompt_tokens}"

    @property
    def tokens(self) -> int:
        """Tokens per time."""
        return 1 if self.decoded_tokens else self.prompt_tokens


@dataclass
class Timings:
    """Sorted seconds per engine, and what the untimed first round answered.

    Attributes:
        trials: best seconds of settings that were tried and dropped.
    """

    prompt: list[int]
    answers: dict[Engine, list[int]]
    seconds: dict[Engine, list[float]]
    trials: dict[Engine, float]


def settle(seconds: float = 5.0) -> None:
    """Wait until no thread of this process has run for 15 milliseconds.

    The thread pools of three libraries share the cores. Each spins for a while after its last job
    (OpenMP's for 4 to 12 milliseconds of processor time), which would be taken from the next engine.
    """
    end, calm = time.perf_counter() + seconds, 0
    while calm < 3:
        if time.perf_counter() > end:
            raise RuntimeError(f"threads of this process still spin after {seconds} s of rest")
        before = time.process_time()
        time.sleep(0.005)
        calm = calm + 1 if time.process_time() - before < 0.0005 else 0


def sample(engine: Engine, case: ModelCase, prompt: Sequence[int]) -> tuple[list[int], list[float]]:
    """One answer: its tokens and the seconds that the case is about."""
    stream = engine.stream(prompt, 1 + case.decoded_tokens)
    tokens, seconds = [], []
    begin = time.perf_counter()
    for token in stream:
        end = time.perf_counter()
        tokens.append(token)
        seconds.append(end - begin)
        begin = time.perf_counter()
    return tokens, seconds[1:] if case.decoded_tokens else seconds


def time_case(
    engines: Sequence[Engine],
    case: ModelCase,
    *,
    rng: np.random.Generator,
    vocab_size: int,
    rounds: int,
    each_round: Callable[[], object],
) -> Timings:
    """``rounds`` answers of each engine in turn; a prompt never comes twice, ours remembers it.

    Args:
        each_round: takes its turn like an engine.
    """
    result = Timings([], {}, {engine: [] for engine in engines}, {})
    active = list(engines)
    for number in range(rounds + 1):
        prompt = rng.integers(3, vocab_size, case.prompt_tokens).tolist()
        settle()
        each_round()
        for engine in active:
            settle()
            tokens, seconds = sample(engine, case, prompt)
            if number:
                result.seconds[engine] += seconds
            else:  # warms up
                result.prompt = prompt
                result.answers[engine] = tokens
        if number == min(TRIAL_ROUNDS, rounds):
            active = drop_slower_settings(active, result)
    for engine in active:
        result.seconds[engine].sort()
    return result


def drop_slower_settings(engines: Sequence[Engine], result: Timings) -> list[Engine]:
    """The fastest engine of each name, by its best time so far."""
    fastest: dict[str, Engine] = {}
    for engine in sorted(engines, key=lambda engine: min(result.seconds[engine])):
        if engine.name in fastest:
            result.trials[engine] = min(result.seconds.pop(engine))
        else:
            fastest[engine.name] = engine
    return [engine for engine in engines if engine in fastest.values()]
