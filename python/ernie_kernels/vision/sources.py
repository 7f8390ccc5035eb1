"""The bytes of what a user gives: a path, a URL, or the bytes themselves."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.local_files import FILE_URL, open_file

Source = Any  # str | os.PathLike | bytes | PIL.Image.Image | numpy.ndarray
# Of an encoded file: bytes from a place on, as many as are asked for or as there are.
Reader = Callable[[int, int], bytes]


def is_encoded(source: Source) -> bool:
    """Whether :func:`encoded_bytes` takes it."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview))


def is_url(source: Source) -> bool:
    return isinstance(source, str) and (source[:5].lower() == "data:" or "://" in source[:32])


def is_local(source: Source) -> bool:
    """Whether it names a file of this machine: :func:`.open_file` takes it."""
    if isinstance(source, str):
        return not is_url(source) or source[: len(FILE_URL)].lower() == FILE_URL
    return isinstance(source, os.PathLike)


def encoded_bytes(
    source: Source,
    where: str,
    limits: VisionLimits,
    max_bytes: int,
    inspect: Callable[[Reader], None] = lambda read: None,
) -> bytes:
    """The encoded file behind ``source``, at most ``max_bytes``.

    Args:
        source: bytes, a ``data:`` URL in base64, or the path or ``file://`` URL of a regular file.
        inspect: may look at parts of it, and raise, before the whole is read, decoded or copied.

    Raises:
        InputError: no such file, not a regular one, unreadable, not allowed by ``limits``; a
            malformed URL, or one of another kind: nothing is fetched.
        LimitError: more than ``max_bytes``, found before the whole is read or decoded.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source)
        limits.check_bytes(where, view.nbytes, max_bytes)
        if not view.c_contiguous or view.nbytes == 0:
            view = memoryview(bytes(view))
        inspect(reader_of(view.cast("B")))
        return source if isinstance(source, bytes) else bytes(view)
    if is_local(source):
        with open_file(source, where, limits.allowed_local_media_path, max_bytes) as file:
            return _contents(file, where, max_bytes, inspect)
    if source[:5].lower() == "data:":
        return _data_url(source, where, limits, max_bytes, inspect)
    raise InputError(
        f"{where}: {quoted(source.partition('://')[0])} addresses are not fetched; download it first, "
        "and pass the bytes, a path or a data: URL"
    )


def reader_of(data: bytes | memoryview) -> Reader:
    return lambda at, count: bytes(data[at : at + count])


def _data_url(
    url: str, where: str, limits: VisionLimits, max_bytes: int, inspect: Callable[[Reader], None]
) -> bytes:
    comma = url.find(",", 0, 256)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise InputError(f"{where}: expected a data URL of the form data:image/png;base64,...")
    begin = comma + 1
    limits.check_bytes(where, (len(url) - begin) * 3 // 4 - 2, max_bytes)

    def read(at: int, count: int) -> bytes:
        first, last = at // 3, -(-(at + count) // 3)  # groups of three bytes, four letters each
        piece = _decoded(url[begin + 4 * first : begin + 4 * last], where)
        return piece[at - 3 * first :][:count]

    inspect(read)
    return _decoded(url[begin:], where)


def _decoded(base64_text: str, where: str) -> bytes:
    try:
        return base64.b64decode(base64_text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{where}: the data URL is not valid base64") from None


def _contents(
    file: BinaryIO, where: str, max_bytes: int, inspect: Callable[[Reader], None]
) -> bytes:
    def read(at: int, count: int) -> bytes:
        file.seek(at)
        return file.read(count) or b""  # of some files of the system None, as there is nothing yet

    inspect(read)
    data = read(0, max_bytes + 1)
    if len(data) > max_bytes:  # it grew meanwhile
        raise LimitError(f"{where}: a file of more than {max_bytes} bytes; send a smaller one")
    return data
