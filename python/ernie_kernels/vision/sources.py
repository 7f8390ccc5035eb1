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

HEAD_BYTES = 1 << 16
Source = Any  # str | os.PathLike | bytes | PIL.Image.Image | numpy.ndarray


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
    inspect: Callable[[bytes], None] = lambda head: None,
) -> bytes:
    """The encoded file behind ``source``, at most ``max_bytes``.

    Args:
        source: bytes, a ``data:`` URL in base64, or the path or ``file://`` URL of a regular file.
        inspect: may raise on the first 64 KiB of a file or URL, before more of it is read.

    Raises:
        InputError: no such file, not a regular one, unreadable, not allowed by ``limits``; a
            malformed URL, or one of another kind: nothing is fetched.
        LimitError: more than ``max_bytes``, found before the whole is read or decoded.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        limits.check_bytes(where, size, max_bytes)
        return bytes(source)
    if is_local(source):
        with open_file(source, where, limits.allowed_local_media_path, max_bytes) as file:
            return _contents(file, where, max_bytes, inspect)
    if source[:5].lower() == "data:":
        return _data_url(source, where, limits, max_bytes, inspect)
    raise InputError(
        f"{where}: {quoted(source.partition('://')[0])} addresses are not fetched; download it first, "
        "and pass the bytes, a path or a data: URL"
    )


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


def _contents(
    file: BinaryIO, where: str, max_bytes: int, inspect: Callable[[bytes], None]
) -> bytes:
    # Of some files of the system reading gives None, as there is nothing yet.
    head = file.read(HEAD_BYTES) or b""
    inspect(head)
    data = head + (file.read(max_bytes + 1 - len(head)) or b"")
    if len(data) > max_bytes:  # it grew meanwhile
        raise LimitError(f"{where}: a file of more than {max_bytes} bytes; send a smaller one")
    return data
