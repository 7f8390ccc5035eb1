"""Reading output features of a stored tensor in bounded steps, converted and turned on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _core
from ..errors import WeightError
from .checkpoint_folder import StoredTensor

# Large enough that a call's cost does not show, small enough to stay in the cache between the read,
# the check for non-finite values and the conversion.
CHUNK_BYTES = 4 << 20
STRIP_ROWS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Output features ``[first, first + count)`` of a stored tensor.

    A vector counts as a matrix of one column. ``transposed``: stored as ``[in, out]``, so that
    output features are columns of the file and rows of the result.
    """

    stored: StoredTensor
    dtype: np.dtype[Any]  # what the stored words are
    transposed: bool
    first: int
    count: int

    @property
    def stored_width(self) -> int:
        return math.prod(self.stored.shape[1:])

    def read_into(self, matrix: np.ndarray) -> Iterator[int]:
        """Fills ``matrix``, ``[count, in]``; yields the stored bytes used up by each step.

        Raises:
            WeightError: at the end, when values are NaN or infinite in the dtype of ``matrix``.
        """
        count, first = 0, -1
        for begin, values in self._chunks(matrix.dtype, into=matrix):
            found, index = _core.count_nonfinite(values)
            if found and count == 0:
                first = begin * self.stored_width + index
            count += found
            window, block = self._part_of(begin, values)
            if not np.may_share_memory(matrix, values):
                _copy(words(matrix)[window], words(block), self.transposed)
            yield block.size * self.dtype.itemsize
        if count:
            raise WeightError(
                f"{self.stored}: {count} values are NaN or infinite as {matrix.dtype}, the first "
                f"at flat index {first}; the file is damaged or holds values beyond that type"
            )

    def equals(self, matrix: np.ndarray) -> bool:
        """Whether the piece, rounded to the dtype of ``matrix``, has the same bits."""
        for begin, values in self._chunks(matrix.dtype):
            window, block = self._part_of(begin, values)
            if not np.array_equal(words(matrix)[window], words(block)):
                return False
        return True

    def _chunks(
        self, dtype: np.dtype[Any], into: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The stored rows that the piece needs, as ``dtype``, with the index of the first row.

        At most ``CHUNK_BYTES`` at a time, or one row. Rows that need no change are read straight
        into the rows of ``into``.
        """
        row_bytes = self.stored_width * self.dtype.itemsize
        begin, end = self.first, self.first + self.count
        if self.transposed:
            begin, end = 0, self.stored.shape[0]
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        direct = into if not self.transposed and self.dtype == dtype else None
        scratch = np.empty((min(step, end - begin), self.stored_width), self.dtype)
        for at in range(begin, end, step):
            rows = min(step, end - at)
            chunk = scratch[:rows] if direct is None else direct[at - begin : at - begin + rows]
            self.stored.file.read_into(self.stored.name, chunk, at * row_bytes)
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are counted afterwards
                yield at, chunk.astype(dtype, copy=False)

    def _part_of(self, begin: int, values: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
        """What stored rows ``values``, from row ``begin`` on, contribute, and its place in it."""
        if self.transposed:
            block = values[:, self.first : self.first + self.count].T
            return (slice(None), slice(begin, begin + len(values))), block
        return (slice(begin - self.first, begin - self.first + len(values)), slice(None)), values


def merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours in one stored tensor become one piece, so that it is read once."""
    last: Piece | None = None
    for piece in pieces:
        if last and last.stored is piece.stored and last.first + last.count == piece.first:
            last = replace(last, count=last.count + piece.count)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _copy(destination: np.ndarray, source: np.ndarray, transposed: bool) -> None:
    """``destination[...] = source``; ``transposed``: ``source`` is a view of a transposed array.

    Then a strip at a time, by way of a compact copy: rows of a large matrix lie a multiple of 4 KiB
    apart, so that walking down a column meets the same few cache lines over and over (7x slower).
    """
    if not transposed:
        destination[...] = source
        return
    for at in range(0, len(source), STRIP_ROWS):
        strip = source[at : at + STRIP_ROWS]
        destination[at : at + STRIP_ROWS] = np.ascontiguousarray(strip.T).T


def words(array: np.ndarray) -> np.ndarray:
    """The same bits as integers, which numpy copies faster than types that it did not define."""
    return array.view(f"u{array.itemsize}")
