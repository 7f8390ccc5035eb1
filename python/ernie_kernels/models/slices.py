"""How much of a long computation runs at a time: whoever waits, or interrupts, waits for no more."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from ernie_kernels import _core

Result = TypeVar("Result")

# A slow core's second at 16 Gflop/s, a tenth of one where bfloat16 has instructions of its own.
PRODUCTS_PER_THREAD = 1 << 33
# Some milliseconds, and enough to fill a GPU. Its calls return before they are done.
PRODUCTS_ON_DEVICE = 1 << 40


def products_per_slice(device: str) -> int:
    """Multiplications with an addition that a slice has about."""
    if device == "cpu":
        return PRODUCTS_PER_THREAD * _core.num_threads()
    return PRODUCTS_ON_DEVICE


def slices_of(count: int, products_of_one: int, products: int) -> Iterator[slice]:
    """``count`` things in slices of about equal size, of at most so many products or of one thing."""
    most = max(1, products // products_of_one)
    size = -(-count // max(1, -(-count // most)))
    for begin in range(0, count, max(1, size)):
        yield slice(begin, min(begin + size, count))


def all_at_once(slices: Generator[int, None, Result]) -> Result:
    """What a generator of slices returns at its end."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value
