"""Reading a checkpoint's weights, by Hugging Face names, straight into the caller's memory.

    with open_checkpoint(folder) as checkpoint:
        checkpoint.require({"model.norm.weight": WeightSpec((1024,), ("hidden_size",)), ...})
        checkpoint.read_into(qkv, *(f"{layer}.self_attn.{m}_proj.weight" for m in "qkv"))

``require`` compares every name, shape and dtype before a byte of weights is read. ``read_into``
moves a few MiB at a time: a load needs the weights, the one matrix being packed, and little else.
"""

from __future__ import annotations

import difflib
import logging
import math
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np

from ..checkpoint_file import quoted
from ..errors import ArgumentError, WeightError
from .checkpoint_folder import StoredTensor, clipped, open_tensors
from .checkpoint_layout import WEIGHT_DTYPES, Source, detect_layout, sources_of
from .tensor_pieces import Piece, merged
from .weight_spec import WeightSpec

logger = logging.getLogger("ernie_kernels")

MTP = "mtp"  # in the names of a multi-token prediction module

# Names compared for "did you mean": difflib is slow, and a file may hold 200,000.
MAX_SUGGESTION_CANDIDATES = 2000

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def open_checkpoint(folder: str | PathLike[str], *, progress: bool | None = None) -> Checkpoint:
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
        "%s: %s layout, %d file%s, %d tensors, %d bytes, %s",
        quoted(folder.resolve().name),
        checkpoint.layout,
        checkpoint.num_files,
        "" if checkpoint.num_files == 1 else "s",
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
        self._required: dict[str, tuple[Piece, tuple[int, ...]]] = {}
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._progress = terminal if progress is None else progress
        self._bar: Any = None
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
        self._required = {}
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __contains__(self, name: str) -> bool:
        return self._source_of(name).name in self._tensors

    def _source_of(self, name: str) -> Source:
        """Where the tensor is stored, or, if it is missing, where it should be."""
        sources = sources_of(name, self.layout)
        return next((each for each in sources if each.name in self._tensors), sources[0])

    # ------------------------------------------------------------------------- what must be there

    def require(self, specs: Mapping[str, WeightSpec], *, optional: Collection[str] = ()) -> None:
        """Compares the checkpoint with all that a model needs, both ways, before reading any of it.

        Args:
            specs: every tensor of the model by its Hugging Face name.
            optional: names in ``specs`` that may be absent (``lm_head.weight`` of a tied model).

        Tensors of a multi-token prediction module (``mtp`` in the name) that are not among them are
        ignored, with a log line: generation without it is exact.

        Raises:
            WeightError: a tensor is missing, unexpected, or has the wrong shape or dtype.
        """
        sources = {name: self._source_of(name) for name in specs}
        members: dict[str, list[str]] = {}  # of each stored tensor, in the order in which they lie
        for name in sorted(specs, key=lambda name: sources[name].place):
            members.setdefault(sources[name].name, []).append(name)
        missing = [
            stored
            for stored, names in members.items()
            if stored not in self._tensors and not set(names) <= set(optional)
        ]
        others = [n for n in self._tensors if n not in members]
        unexpected = [n for n in others if MTP not in n]
        if missing or unexpected:
            raise WeightError(_difference(missing, unexpected))
        if others:
            logger.info(
                "%d tensors of a multi-token prediction module left out: speculative_config uses "
                "them",
                len(others),
            )
        required = {}
        for stored, names in members.items():
            if stored in self._tensors:
                whole = {name: specs[name] for name in names}
                required.update(self._locate(self._tensors[stored], whole, sources[names[0]]))
        self._required = required

    def _locate(
        self, tensor: StoredTensor, members: Mapping[str, WeightSpec], source: Source
    ) -> dict[str, tuple[Piece, tuple[int, ...]]]:
        """The piece of ``tensor`` that each member is, and the member's shape; checks the whole."""
        dtype = self._dtype_of(tensor)
        first = next(iter(members.values()))
        outputs, width = sum(spec.shape[0] for spec in members.values()), first.shape[1:]
        transposed = source.transposed or first.transposed
        expected = (*width, outputs) if transposed else (outputs, *width)
        if source.per_expert:
            num_experts = len(members) // source.per_expert
            expected = (num_experts, outputs // num_experts, *width)
        if first.either_way and expected != tensor.shape == expected[::-1]:
            transposed, expected = not transposed, tensor.shape
        if tensor.shape != expected:
            keys = dict.fromkeys(key for spec in members.values() for key in spec.config_keys)
            origin = f" from {', '.join(keys)} of config.json" if keys else ""
            raise WeightError(
                clipped(f"{tensor}: shape {list(tensor.shape)}, expected {list(expected)}{origin}")
            )
        if source.per_expert:
            tensor = replace(tensor, shape=(outputs, *width))  # one expert below the other
        pieces, row = {}, 0
        for name, spec in members.items():
            pieces[name] = (Piece(tensor, dtype, transposed, row, spec.shape[0]), spec.shape)
            row += spec.shape[0]
        return pieces

    def _dtype_of(self, tensor: StoredTensor) -> np.dtype[Any]:
        allowed = WEIGHT_DTYPES[self.layout]
        if tensor.dtype not in allowed:
            raise WeightError(
                f"{tensor}: dtype {tensor.dtype}, expected {' or '.join(allowed)} for a weight "
                f"in the {self.layout} layout"
            )
        return NUMPY_DTYPES[allowed[tensor.dtype]]

    # ------------------------------------------------------------------------------------ reading

    def tensor(self, *names: str, dtype: str) -> np.ndarray:
        """A tensor, or several of equal width one below the other, as a new array.

        ``dtype`` is ``"float32"``, ``"bfloat16"`` or ``"float16"``; for the rest see
        :meth:`read_into`.
        """
        destination = np.empty(self.shape_of(*names), NUMPY_DTYPES[dtype])
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
        shape = self.shape_of(*names)
        if array.shape != shape:
            raise ArgumentError(
                f"read_into: destination: expected shape {list(shape)} for {quoted(names[0])}"
                f"{' and what follows it' if len(names) > 1 else ''}, got {list(array.shape)}"
            )
        flags = array.flags
        if not (flags.c_contiguous and flags.writeable and array.dtype in NUMPY_DTYPES.values()):
            raise ArgumentError(
                f"read_into: destination: expected a writable C-contiguous array of "
                f"{' or '.join(NUMPY_DTYPES)}, got {array.dtype}, strides {array.strides}, "
                f"writable: {flags.writeable}"
            )
        matrix = array.reshape(shape[0], math.prod(shape[1:]))
        row = 0
        for piece in merged(self._required[name][0] for name in names):
            for nbytes in piece.read_into(matrix[row : row + piece.count]):
                self._advance(nbytes)
            row += piece.count

    def equals(self, name: str, array: np.ndarray) -> bool:
        """Whether a stored tensor, rounded to the dtype of ``array``, is ``array``.

        Reads no further than the first few MiB that differ. Decides whether the ``lm_head.weight``
        of a tied checkpoint is one of its own or the embedding once more.
        """
        shape = self.shape_of(name)
        if array.shape != shape:
            return False
        return self._required[name][0].equals(array.reshape(shape[0], math.prod(shape[1:])))

    def shape_of(self, *names: str) -> tuple[int, ...]:
        """Of required tensors of equal width, one below the other."""
        for name in names:
            if name not in self._required:
                raise ArgumentError(f"checkpoint: {quoted(name)}: not among the required tensors")
        shapes = [self._required[name][1] for name in names]
        if not names or any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise ArgumentError(
                f"checkpoint: expected tensors of equal width, got shapes {shapes[:8]}"
            )
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _advance(self, nbytes: int) -> None:
        if not self._progress:
            return
        if self._bar is None:
            from tqdm import tqdm  # here: a load without a bar need not import it

            total = sum(math.prod(s) * p.dtype.itemsize for p, s in self._required.values())
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="weights")
        self._bar.update(nbytes)


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
