"""Reading a checkpoint's weights, by Hugging Face names, straight into the caller's memory.

    with open_checkpoint(folder) as checkpoint:
        checkpoint.require({"model.norm.weight": WeightSpec((1024,), ("hidden_size",)), ...})
        checkpoint.read_into(qkv, *(f"{layer}.self_attn.{m}_proj.weight" for m in "qkv"))

``require`` compares every name, shape and dtype before a byte of weights is read. ``read_into``
moves at most a few MiB at a time beside the destination: a load needs the weights, the one matrix
that is being packed, and little else.
"""

from __future__ import annotations

import difflib
import logging
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np

from .. import _core
from ..checkpoint_file import quoted
from ..errors import ArgumentError, WeightError
from .checkpoint_folder import StoredTensor, clipped, open_tensors
from .checkpoint_layout import WEIGHT_DTYPES, detect_layout, source_of

logger = logging.getLogger("ernie_kernels")

# Large enough that a call's cost does not show, small enough to stay in the cache between the read,
# the check for non-finite values and the conversion.
CHUNK_BYTES = 4 << 20
# Names compared for "did you mean": difflib is quadratic, and a file may hold 200,000.
MAX_SUGGESTION_CANDIDATES = 2000

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """What a model needs: a shape, and the configuration keys it comes from, for messages."""

    shape: tuple[int, ...]
    config_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Output features [first, first + count) of a stored tensor: what one pass over it delivers.

    Vectors are taken as a matrix of one column.
    """

    stored: StoredTensor
    transposed: bool
    first: int
    count: int

    @property
    def stored_width(self) -> int:
        return math.prod(self.stored.shape[1:])

    @property
    def stored_rows(self) -> tuple[int, int]:
        if self.transposed:
            return 0, self.stored.shape[0]
        return self.first, self.first + self.count

    def part_of(self, begin: int, values: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
        """What stored rows ``values``, from row ``begin`` on, contribute, and its place in it."""
        if self.transposed:
            block = values[:, self.first : self.first + self.count].T
            return (slice(None), slice(begin, begin + len(values))), block
        return (slice(begin - self.first, begin - self.first + len(values)), slice(None)), values

    def followed_by(self, other: _Piece) -> bool:
        return self.stored is other.stored and self.first + self.count == other.first


def open_checkpoint(folder: str | Path, *, progress: bool | None = None) -> Checkpoint:
    """Opens the checkpoint in ``folder`` and checks every header.

    Args:
        folder: holds ``model.safetensors``, or shards and ``model.safetensors.index.json``, in the
            Hugging Face or the Paddle layout.
        progress: show a bar over the bytes read on stderr. None: when stderr is a terminal.

    Raises:
        FormatError: no checkpoint, or a file that is not what its format says.
        WeightError: index and files contradict each other, or the names fit no layout.
    """
    folder = Path(folder)
    checkpoint = Checkpoint(open_tensors(folder), progress)
    logger.info(
        "%s: %s layout, %d file(s), %d tensors, %d bytes, %s",
        quoted(folder.resolve().name),
        checkpoint.layout,
        checkpoint.num_files,
        checkpoint.num_tensors,
        checkpoint.nbytes,
        checkpoint.dtype,
    )
    return checkpoint


class Checkpoint:
    """The tensors of one checkpoint. Made by :func:`open_checkpoint`; a context manager.

    Attributes:
        layout: ``"huggingface"`` or ``"paddle"``.
        dtype: that of most of the bytes: ``"bfloat16"``, ``"float16"`` or ``"float32"``; as the
            file spells it when it is none of these.
        num_files, num_tensors, nbytes: how much there is; bytes of tensor data.
    """

    def __init__(self, tensors: dict[str, StoredTensor], progress: bool | None = None) -> None:
        self._tensors = tensors
        self._progress = sys.stderr.isatty() if progress is None else progress
        self._bar: Any = None
        self._pieces: dict[str, _Piece] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.layout = detect_layout(tensors)
        self.num_files = len({tensor.file_name for tensor in tensors.values()})
        self.num_tensors = len(tensors)
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        stored_bytes: Counter[str] = Counter()
        for tensor in tensors.values():
            stored_bytes[tensor.dtype] += tensor.nbytes
        stored_dtype = stored_bytes.most_common(1)[0][0]
        self.dtype = WEIGHT_DTYPES[self.layout].get(stored_dtype, stored_dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and the progress bar. The tensors can no longer be read."""
        self._tensors = {}
        self._pieces = {}
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __contains__(self, name: str) -> bool:
        return source_of(name, self.layout).name in self._tensors

    # ------------------------------------------------------------------------- what must be there

    def require(self, specs: Mapping[str, WeightSpec], *, optional: Collection[str] = ()) -> None:
        """Compares the checkpoint with all that a model needs, both ways, before reading any of it.

        Args:
            specs: every tensor of the model by its Hugging Face name.
            optional: names in ``specs`` that may be absent (``lm_head.weight`` of a tied model).

        Tensors of a multi-token prediction module (``mtp`` in the name) are ignored: generation
        without it is exact.

        Raises:
            WeightError: a tensor is missing, unexpected, or has the wrong shape or dtype.
        """
        members: dict[str, list[str]] = {}
        for name in specs:
            members.setdefault(source_of(name, self.layout).name, []).append(name)
        missing = [
            stored
            for stored, names in members.items()
            if stored not in self._tensors and not all(name in optional for name in names)
        ]
        unexpected = [n for n in self._tensors if n not in members and "mtp" not in n]
        if missing or unexpected:
            raise WeightError(_difference(missing, unexpected))
        for stored, names in members.items():
            if stored in self._tensors:
                names.sort(key=lambda name: source_of(name, self.layout).place or 0)
                self._check_stored(self._tensors[stored], {n: specs[n] for n in names})
        self._pieces = dict(self._locate(specs, members))
        self._shapes = {name: specs[name].shape for name in self._pieces}

    def _locate(
        self, specs: Mapping[str, WeightSpec], members: dict[str, list[str]]
    ) -> Iterator[tuple[str, _Piece]]:
        for stored, names in members.items():
            if stored not in self._tensors:
                continue
            first = 0
            for name in names:
                transposed = source_of(name, self.layout).transposed
                count = specs[name].shape[0]
                yield name, _Piece(self._tensors[stored], transposed, first, count)
                first += count

    def _check_stored(self, tensor: StoredTensor, members: Mapping[str, WeightSpec]) -> None:
        self._numpy_dtype_of(tensor)
        first = next(iter(members))
        shape = members[first].shape
        if source_of(first, self.layout).place is not None:
            shape = (sum(spec.shape[0] for spec in members.values()), *shape[1:])
        if source_of(first, self.layout).transposed:
            shape = shape[::-1]
        if tensor.shape != shape:
            keys = dict.fromkeys(key for spec in members.values() for key in spec.config_keys)
            origin = f" from {', '.join(keys)} of config.json" if keys else ""
            raise WeightError(
                clipped(f"{tensor}: shape {list(tensor.shape)}, expected {list(shape)}{origin}")
            )

    def _numpy_dtype_of(self, tensor: StoredTensor) -> np.dtype[Any]:
        allowed = WEIGHT_DTYPES[self.layout]
        if tensor.dtype not in allowed:
            raise WeightError(
                f"{tensor}: dtype {tensor.dtype}, expected {' or '.join(allowed)} for a weight "
                f"of the {self.layout} layout"
            )
        return NUMPY_DTYPES[allowed[tensor.dtype]]

    # ------------------------------------------------------------------------------------ reading

    def tensor(self, *names: str, dtype: str) -> np.ndarray:
        """A tensor, or several of equal width one below the other, as a new array.

        ``dtype`` is ``"float32"``, ``"bfloat16"`` or ``"float16"``; for the rest see
        :meth:`read_into`.
        """
        shapes = [self._required(name)[1] for name in names]
        rows = sum(shape[0] for shape in shapes)
        destination = np.empty((rows, *shapes[0][1:]), NUMPY_DTYPES[dtype])
        self.read_into(destination, *names)
        return destination

    def read_into(self, destination: Any, *names: str) -> None:
        """Fills ``destination`` with the tensors ``names``, one below the other.

        Args:
            destination: a C-contiguous numpy array or CPU ``Tensor``, float32, float16 or bfloat16,
                of the tensors' width and the sum of their rows. Values are rounded to its dtype.
            names: Hugging Face names, which :meth:`require` has accepted.

        Raises:
            ArgumentError: a name that was not required, or a destination of the wrong layout.
            WeightError: a value is NaN or infinite after rounding; the destination is undefined.
            FormatError: the file cannot be read or has changed since it was opened.
        """
        array = destination if isinstance(destination, np.ndarray) else destination.numpy()
        required = [self._required(name) for name in names]
        rows = sum(shape[0] for _, shape in required)
        if any(array.shape != (rows, *shape[1:]) for _, shape in required):
            raise ArgumentError(
                f"read_into: destination: expected shape {[rows, *required[0][1][1:]]} for "
                f"{quoted(names[0])} and what follows it, got {list(array.shape)}"
            )
        if not array.flags.c_contiguous or array.dtype not in NUMPY_DTYPES.values():
            raise ArgumentError(
                f"read_into: destination: expected C-contiguous {', '.join(NUMPY_DTYPES)}, got "
                f"{array.dtype}{'' if array.flags.c_contiguous else ', not contiguous'}"
            )
        at = 0
        for piece in _merged([piece for piece, _ in required]):
            self._read_piece(piece, array[at : at + piece.count])
            at += piece.count

    def equals(self, name: str, array: np.ndarray) -> bool:
        """Whether a stored tensor, rounded to the dtype of ``array``, is ``array``.

        Reads no further than the first few MiB that differ: an ``lm_head.weight`` that is present
        in a tied checkpoint is compared with the embedding and dropped when it is the same.
        """
        piece, shape = self._required(name)
        if array.shape != shape:
            return False
        matrix = array.reshape(len(array), math.prod(shape[1:]))
        for begin, values in self._chunks(piece, array.dtype):
            window, block = piece.part_of(begin, values)
            if not np.array_equal(_words(matrix)[window], _words(block)):
                return False
        return True

    def _required(self, name: str) -> tuple[_Piece, tuple[int, ...]]:
        if name not in self._pieces:
            raise ArgumentError(
                f"checkpoint: expected a name passed to require(), got {quoted(name)}"
            )
        return self._pieces[name], self._shapes[name]

    def _read_piece(self, piece: _Piece, destination: np.ndarray) -> None:
        matrix = destination.reshape(len(destination), math.prod(destination.shape[1:]))
        width = piece.stored_width
        count, first = 0, -1
        for begin, values in self._chunks(piece, matrix.dtype, into=matrix):
            found, index = _core.count_nonfinite(values)
            if found and count == 0:
                first = begin * width + index
            count += found
            window, block = piece.part_of(begin, values)
            if not np.may_share_memory(matrix, values):
                _words(matrix)[window] = _words(block)
            self._advance(block.size * piece.stored.nbytes // max(1, math.prod(piece.stored.shape)))
        if count:
            raise WeightError(
                f"{piece.stored}: {count} values are NaN or infinite as {matrix.dtype}, the first "
                f"at flat index {first}; the file is damaged or holds values beyond that type"
            )

    def _chunks(
        self, piece: _Piece, dtype: np.dtype[Any], into: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The stored rows that ``piece`` needs, as ``dtype``, with the index of the first row.

        At most ``CHUNK_BYTES`` at a time, or one row. Rows that need no change are read straight
        into the rows of ``into``.
        """
        stored_dtype = self._numpy_dtype_of(piece.stored)
        row_bytes = piece.stored_width * stored_dtype.itemsize
        begin, end = piece.stored_rows
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        direct = into is not None and not piece.transposed and stored_dtype == dtype
        if not direct:
            scratch = np.empty((min(step, end - begin), piece.stored_width), stored_dtype)
        for at in range(begin, end, step):
            rows = min(step, end - at)
            chunk = into[at - begin : at - begin + rows] if direct else scratch[:rows]  # type: ignore[index]
            piece.stored.file.read_into(piece.stored.name, chunk, at * row_bytes)
            with np.errstate(over="ignore", invalid="ignore"):  # found by the check for infinities
                yield at, chunk.astype(dtype, copy=False)

    def _advance(self, nbytes: int) -> None:
        if not self._progress:
            return
        if self._bar is None:
            from tqdm import tqdm  # here: a load without a bar need not import it

            total = sum(stored.nbytes for stored in {p.stored for p in self._pieces.values()})
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="weights")
        self._bar.update(nbytes)


def _merged(pieces: list[_Piece]) -> Iterator[_Piece]:
    """Neighbours in one stored tensor become one piece, so that it is read once."""
    merged: _Piece | None = None
    for piece in pieces:
        if merged is None:
            merged = piece
        elif merged.followed_by(piece):
            merged = replace(merged, count=merged.count + piece.count)
        else:
            yield merged
            merged = piece
    if merged is not None:
        yield merged


def _words(array: np.ndarray) -> np.ndarray:
    """The same bits as integers, which numpy copies faster than types that it did not define."""
    return array.view(f"u{array.itemsize}")


def _difference(missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing: {', '.join(map(quoted, missing[:5]))}")
        candidates = islice(unexpected, MAX_SUGGESTION_CANDIDATES)
        alike = difflib.get_close_matches(missing[0], candidates, n=1, cutoff=0.8)
        if alike:
            parts.append(f"did you mean {quoted(alike[0])}?")
    if unexpected:
        parts.append(
            f"{len(unexpected)} tensors unexpected: {', '.join(map(quoted, unexpected[:5]))}"
        )
    return clipped(f"checkpoint: {'; '.join(parts)}; does config.json belong to these files?")
