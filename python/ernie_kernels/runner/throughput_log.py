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
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of those


class ThroughputLog:
    """To be told when a step begins and when it ends, and when there is time to write."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._last_end = self._since
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._due: deque[str] = deque()  # lines

    def step_begins(self, load: Callable[[], Load]) -> None:
        """With a function that is called only after idle time: what counts begins now."""
        if self._clock() - self._last_end > INTERVAL:
            self._begin(load())

    def step_ends(self, load: Callable[[], Load]) -> None:
        """With a function that is called only when a line is due."""
        self._last_end = self._clock()
        seconds = self._last_end - self._since
        if seconds < INTERVAL:
            return
        now = load()
        prompt_rate = (now.prompt_tokens - self._prompt_tokens) / seconds
        generated_rate = (now.generated_tokens - self._generated_tokens) / seconds
        used = 100 * (1 - now.num_free_blocks / now.num_blocks)
        line = (
            f"{now.running} running, {now.waiting} waiting, {prompt_rate:.1f} prompt tok/s, "
            f"{generated_rate:.1f} generated tok/s, KV cache {used:.1f} %"
        )
        drafted = now.drafted_tokens - self._drafted_tokens
        if drafted:
            accepted = now.accepted_tokens - self._accepted_tokens
            line += f", {accepted} of {drafted} drafts accepted ({100 * accepted / drafted:.1f} %)"
        self._due.append(line)
        self._begin(now)

    def write(self) -> None:
        """Write what is due. A handler may take its time, and call the engine."""
        while self._due:
            try:
                line = self._due.popleft()
            except IndexError:  # another thread writes it
                return
            logger.info("%s", line)

    def _begin(self, now: Load) -> None:
        self._since = self._clock()
        self._prompt_tokens = now.prompt_tokens
        self._generated_tokens = now.generated_tokens
        self._drafted_tokens = now.drafted_tokens
        self._accepted_tokens = now.accepted_tokens
