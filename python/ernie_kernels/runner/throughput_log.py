"""One line every few seconds that says how generation goes; none while nothing happens."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("ernie_kernels")

INTERVAL = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine does at a moment, and how much it has done since its beginning."""

    running: int
    waiting: int
    prompt_tokens: int
    generated_tokens: int
    num_blocks: int
    num_free_blocks: int


class ThroughputLog:
    """To be told when a step begins and when it ends, and when there is time to write."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._last_end = self._since
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._due: deque[tuple[float, ...]] = deque()  # the numbers of lines

    def step_begins(self, prompt_tokens: int, generated_tokens: int) -> None:
        """With the tokens counted before the step."""
        if self._clock() - self._last_end > INTERVAL:  # idle until now
            self._begin(prompt_tokens, generated_tokens)

    def step_ends(self, load: Callable[[], Load]) -> None:
        """With a function that is called only when a line is due."""
        self._last_end = self._clock()
        seconds = self._last_end - self._since
        if seconds < INTERVAL:
            return
        now = load()
        self._due.append(
            (
                now.running,
                now.waiting,
                (now.prompt_tokens - self._prompt_tokens) / seconds,
                (now.generated_tokens - self._generated_tokens) / seconds,
                100 * (1 - now.num_free_blocks / now.num_blocks),
            )
        )
        self._begin(now.prompt_tokens, now.generated_tokens)

    def write(self) -> None:
        """Write what is due. A handler may take its time, and call the engine."""
        while self._due:
            try:
                numbers = self._due.popleft()
            except IndexError:  # another thread writes it
                return
            logger.info(
                "%d running, %d waiting, %.1f prompt tok/s, %.1f generated tok/s, KV cache %.1f %%",
                *numbers,
            )

    def _begin(self, prompt_tokens: int, generated_tokens: int) -> None:
        self._since = self._clock()
        self._prompt_tokens = prompt_tokens
        self._generated_tokens = generated_tokens
