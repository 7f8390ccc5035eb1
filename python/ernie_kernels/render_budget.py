"""What rendering a chat template may consume, and the account that is kept of it."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from ernie_kernels.errors import LimitError

ITEM_COST = 16  # of a list element or dict entry, in characters


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one rendering may consume."""

    steps: int = 200_000  # loop iterations and calls
    value_characters: int = 16 << 20  # of one string, or of all strings in one container
    total_characters: int = 256 << 20  # of all values made on the way
    output_characters: int = 16 << 20
    seconds: float = 5.0


class RenderBudget:
    """What is left of the limits in one rendering."""

    def __init__(self, limits: RenderLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.characters = limits.total_characters
        self.deadline = time.monotonic() + limits.seconds
        # Sizes of the containers met so far; the container is kept so that its id stays its own.
        self.sizes: dict[int, tuple[object, int]] = {}

    def step(self, characters: int = 0) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LimitError(f"chat template: more than {self.limits.steps} steps")
        self.spend(characters)
        self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise LimitError(f"chat template: ran longer than {self.limits.seconds:g} seconds")

    def spend(self, characters: int) -> None:
        """Account for a value of this length before it is made."""
        self.characters -= characters
        if characters > self.limits.value_characters or self.characters < 0:
            raise LimitError(
                f"chat template: a value of more than {self.limits.value_characters} characters, "
                f"or more than {self.limits.total_characters} in all"
            )

    def size(self, value: object) -> int:
        """Characters that a value would print, roughly; shared parts count each time."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, (list, tuple, dict)):
            return ITEM_COST
        known = self.sizes.get(id(value))
        if known is not None:
            return known[1]
        parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
        size = sum(ITEM_COST + self.size(part) for part in parts)
        if size > self.limits.value_characters:
            raise LimitError(
                f"chat template: a value of more than {self.limits.value_characters} characters"
            )
        self.sizes[id(value)] = (value, size)
        return size
