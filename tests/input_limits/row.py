"""One kind of bad input.

A test is named ``file::function``; ``file::function[row 5`` means those of its cases whose id
begins so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What goes wrong, the tests of it, and what cannot go wrong so far."""

    what: str
    tests: tuple[str, ...] = ()
    not_yet: str = ""
