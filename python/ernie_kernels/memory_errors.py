"""Host memory that ran out, in an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ernie_kernels.errors import OutOfMemoryError


def out_of_memory(error: MemoryError, stage: str) -> OutOfMemoryError:
    if isinstance(error, OutOfMemoryError):
        return OutOfMemoryError(f"{stage}: {error}")
    return OutOfMemoryError(f"{stage}: host memory exhausted")


@contextmanager
def reporting_memory(stage: str) -> Iterator[None]:
    """Raises OutOfMemoryError where Python, numpy or a decoder of images raises MemoryError."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MemoryError as error:
        raise out_of_memory(error, stage) from None
