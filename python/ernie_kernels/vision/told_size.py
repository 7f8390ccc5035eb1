"""The size of an image before it is decoded."""

from __future__ import annotations

import base64
import binascii
from typing import NoReturn

import numpy as np

from ernie_kernels.errors import InputError
from ernie_kernels.vision.image_header import read_image_header
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.sources import HEAD_BYTES, Source, encoded_bytes, is_encoded


class _Head(Exception):
    """The beginning of a file, which has been read far enough."""

    def __init__(self, head: bytes) -> None:
        self.head = head


def told_size(source: Source, where: str, limits: VisionLimits) -> tuple[int, int] | None:
    """Height and width of an image; None where the source does not tell, or is no image.

    Of an encoded one no more than the beginning is read: whatever else is wrong is for who decodes it.

    Raises:
        LimitError: more pixels than an image may have.
    """
    if is_encoded(source):
        try:
            header = read_image_header(_head(source, where, limits), where)
        except InputError:
            return None
        width, height = header.width, header.height
    elif isinstance(source, np.ndarray):
        if source.ndim not in (2, 3):
            return None
        height, width = source.shape[:2]
    else:
        size = getattr(source, "size", None)
        if not (isinstance(size, tuple) and len(size) == 2 and all(type(n) is int for n in size)):
            return None
        width, height = size
    try:
        limits.check_size(where, width, height)
    except InputError:
        if width > 0 and height > 0:
            raise
        return None
    return height, width


def _head(source: Source, where: str, limits: VisionLimits) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(memoryview(source).cast("B")[:HEAD_BYTES])
    if isinstance(source, str) and source[:5].lower() == "data:":
        begin = source.find(",", 0, 256) + 1
        try:
            return base64.b64decode(source[begin : begin + HEAD_BYTES // 3 * 4])
        except (binascii.Error, ValueError):
            return b""

    def stop(head: bytes) -> NoReturn:
        raise _Head(head)

    try:
        return encoded_bytes(source, where, limits, limits.image_bytes, stop)
    except _Head as found:
        return found.head
