"""The bytes of what a user gives: a path, bytes, a data URL, an open file's name in an error."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.limits import VisionLimits

HEAD_BYTES = 1 << 16
Source = Any  # str | os.PathLike | bytes | PIL.Image.Image | numpy.ndarray


def is_encoded(source: Source) -> bool:
    """Whether :func:`encoded_bytes` takes it."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def is_url(source: Source) -> bool:
    return isinstance(source, str) and (source[:5].lower() == "data:" or "://" in source[:32])


def encoded_bytes(
    source: Source,
    where: str,
    limits: VisionLimits,
    max_bytes: int,
    inspect: Callable[[bytes], None] = lambda head: None,
) -> bytes:
    """The encoded file behind ``source``, at most ``max_bytes``.

    Args:
        source: bytes, a ``data:`` URL in base64, or the path of a regular file.
        inspect: may raise on the first 64 KiB of a file or URL, before more of it is read.

    Raises:
        InputError: no such file, not a regular one, unreadable; a malformed URL, or one of another
            kind: nothing is fetched.
        LimitError: more than ``max_bytes``, found before the whole is read or decoded.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        limits.check_bytes(where, size, max_bytes)
        return bytes(source)
    if is_url(source):
        if source[:5].lower() == "data:":
            return _data_url(source, where, limits, max_bytes, inspect)
        raise InputError(
            f"{where}: {quoted(source.partition('://')[0])} addresses are not fetched; pass the bytes, "
            f"a path or a data: URL"
        )
    return _file(Path(os.fsdecode(source)), where, max_bytes, inspect)


def _data_url(
    url: str, where: str, limits: VisionLimits, max_bytes: int, inspect: Callable[[bytes], None]
) -> bytes:
    comma = url.find(",", 0, 256)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise InputError(f"{where}: expected a data URL of the form data:image/png;base64,...")
    begin = comma + 1
    limits.check_bytes(where, (len(url) - begin) * 3 // 4 - 2, max_bytes)
    inspect(_decoded(url[begin : begin + HEAD_BYTES // 3 * 4], where))
    return _decoded(url[begin:], where)


def _decoded(base64_text: str, where: str) -> bytes:
    try:
        return base64.b64decode(base64_text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{where}: the data URL is not valid base64") from None


@contextmanager
def open_file(path: Path, where: str, max_bytes: int) -> Iterator[BinaryIO]:
    """A regular file of at most ``max_bytes``, open at its beginning.

    Raises:
        InputError: missing, not regular, unreadable.
        LimitError: larger; not a byte of it has been read.
    """
    name = quoted(path.name)
    try:
        # Without waiting: a pipe of this name would otherwise hold the caller for good.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_read(where, name, error) from None
    except ValueError:  # a null character in the path
        raise InputError(f"{where}: {name} is not a path") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise InputError(f"{where}: {name} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            if facts.st_size > max_bytes:
                raise LimitError(
                    f"{where}: {name} has {facts.st_size} bytes, the limit is {max_bytes}; send a "
                    f"smaller file"
                )
            yield file
        except OSError as error:
            raise _cannot_read(where, name, error) from None


def _file(path: Path, where: str, max_bytes: int, inspect: Callable[[bytes], None]) -> bytes:
    with open_file(path, where, max_bytes) as file:
        head = file.read(HEAD_BYTES)
        inspect(head)
        data = head + file.read(max_bytes + 1 - len(head))
    if len(data) > max_bytes:  # it grew meanwhile
        raise LimitError(f"{where}: {quoted(path.name)} has more than {max_bytes} bytes")
    return data


def _cannot_read(where: str, name: str, error: OSError) -> InputError:
    reason = errno.errorcode.get(error.errno or 0, "unknown error")
    return InputError(f"{where}: {name} cannot be read ({reason})")
