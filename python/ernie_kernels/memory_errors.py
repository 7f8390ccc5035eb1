"""Host memory that ran out, in an error of ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ernie_kernels.errors import OutOfMemoryError


def out_of_memory(error: MemoryError, stage: str) -> OutOfMemoryError:
    """Says so, and lets go of what the calls that failed had got: whoever catches it may try again."""
    traceback.clear_frames(error.__traceback__)
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
