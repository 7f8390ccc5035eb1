"""One line of a report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """What was found out.

    Attributes:
        value: what was found; None where it could not be found out.
        problem: what is wrong with it and what to do; None where nothing is.
    """

    section: str
    name: str
    value: str | int | None
    problem: str | None = None
