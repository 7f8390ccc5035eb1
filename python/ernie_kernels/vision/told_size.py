"""The size of an image before it is decoded."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from ernie_kernels.errors import InputError
from ernie_kernels.vision.image import is_pillow_image
from ernie_kernels.vision.image_header import ImageHeader, read_image_header
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.sources import Reader, Source, encoded_bytes, is_encoded


class _Told(Exception):
    """A file has been read far enough."""

    def __init__(self, header: ImageHeader) -> None:
        self.header = header


def told_size(source: Source, where: str, limits: VisionLimits) -> tuple[int, int] | None:
    """Height and width of an image; None where the source does not tell, or is no image.

    Of an encoded one no more is read than where it stands: whatever else is wrong is for who decodes it.

    Raises:
        LimitError: more pixels than an image may have.
    """
    if is_encoded(source):

        def stop(read: Reader) -> NoReturn:
            raise _Told(read_image_header(read, where))

        try:
            encoded_bytes(source, where, limits, limits.image_bytes, stop)
        except InputError:
            return None
        except _Told as told:
            width, height = told.header.width, told.header.height
    elif isinstance(source, np.ndarray):
        if source.ndim not in (2, 3):
            return None
        height, width = source.shape[:2]
    elif is_pillow_image(source):
        width, height = source.size
    else:
        return None
    try:
        limits.check_size(where, width, height)
    except InputError:
        if width > 0 and height > 0:
            raise
        return None
    return height, width
