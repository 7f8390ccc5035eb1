"""From what a user calls an image to its pixels: uint8 ``[H, W, 3]``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.vision.extras import pillow
from ernie_kernels.vision.image_header import check_structure, read_image_header, unreadable
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.sources import Reader, Source, encoded_bytes, is_encoded, reader_of

ORIENTATION_TAG = 0x0112  # of EXIF
PREMULTIPLIED = ("La", "RGBa")
STRIP_ROWS = 64


def load_image(source: Source, where: str, limits: VisionLimits) -> np.ndarray:
    """The pixels of an image, upright, as RGB.

    Args:
        source: encoded bytes, a path, a file:// or data: URL of a PNG, JPEG or WebP; a Pillow image; or an
            array uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]``. The channels of an
            array are its last dimension, whatever the sizes.
        where: what messages call it, such as ``"image 2"``.

    Returns:
        uint8 ``[H, W, 3]``, C-contiguous. Transparency is dropped, as Pillow's convert("RGB") does;
        of an animation the first frame is taken; of 16 bits the upper 8.

    Raises:
        InputError: not a readable image.
        LimitError: larger than ``limits``; told from the header.
        ArgumentError: an array of another rank, dtype or number of channels.
        TypeError: none of the above.
        UnsupportedError: Pillow is needed and missing.
    """
    if is_encoded(source):

        def inspect(read: Reader) -> None:
            header = read_image_header(read, where)
            limits.check_size(where, header.width, header.height)

        # Not held here: a large file is let go as soon as it is decoded.
        return _decode(
            encoded_bytes(source, where, limits, limits.image_bytes, inspect), where, limits
        )
    if isinstance(source, np.ndarray):
        return _from_array(source, where, limits)
    if is_pillow_image(source):
        limits.check_size(where, *source.size)
        return _to_rgb(source, where, limits)
    raise TypeError(
        f"{where}: expected a path, bytes, a data: URL, a Pillow image or a numpy array, got "
        f"{type(source).__name__}"
    )


def is_pillow_image(source: Any) -> bool:
    # Asked of the type, so that arrays and files of another kind need no Pillow.
    names = {f"{base.__module__}.{base.__name__}" for base in type(source).__mro__}
    return "PIL.Image.Image" in names


def _decode(data: bytes, where: str, limits: VisionLimits) -> np.ndarray:
    header = read_image_header(reader_of(data), where)
    limits.check_size(where, header.width, header.height)  # a file may have changed meanwhile
    check_structure(data, header, where)
    if header.format == "GIF":
        raise InputError(f"{where}: a GIF is a video here; pass it as one, or convert it to PNG")
    image_module = pillow()
    try:
        # One format alone: no other of Pillow's many decoders sees the bytes.
        image = image_module.open(io.BytesIO(data), formats=(header.format,))
        agrees = image.size == (header.width, header.height)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (decoders raise whatever they like, in words of their own)
        raise unreadable(where) from None
    if not agrees:
        raise unreadable(where)
    del data
    with image:
        return _to_rgb(image, where, limits)


def _to_rgb(image: Any, where: str, limits: VisionLimits) -> np.ndarray:
    """Strip by strip, so that a large image is in memory twice and no more."""
    try:
        image.load()
        width, height = image.size
        limits.check_size(where, width, height)
        orientation = _orientation(image)
        is_turned = orientation >= 5
        pixels = np.empty((width, height, 3) if is_turned else (height, width, 3), np.uint8)
        stored = _as_stored(pixels, orientation)
        for top in range(0, height, STRIP_ROWS):
            bottom = min(top + STRIP_ROWS, height)
            stored[top:bottom] = _strip_to_rgb(image.crop((0, top, width, bottom)))
        return pixels
    except (MemoryError, LimitError):
        raise
    except Exception:  # noqa: BLE001  (see above)
        raise unreadable(where) from None


def _strip_to_rgb(strip: Any) -> np.ndarray:
    if strip.mode.startswith("I;16"):
        # convert() would clip: all but the darkest 256 of 65536 levels would be white.
        grey = (np.asarray(strip).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if strip.mode in PREMULTIPLIED:  # Pillow has no direct way to RGB
        strip = strip.convert(strip.mode.upper())
    return np.asarray(strip.convert("RGB"))


def _orientation(image: Any) -> int:
    """1 to 8 as EXIF numbers them; from 5 on rows are columns."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (broken metadata is no reason to refuse the pixels)
        return 1
    is_known = isinstance(orientation, int) and 1 <= orientation <= 8
    return int(orientation) if is_known else 1


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright picture whose first row is the first one in the file."""
    view = upright.swapaxes(0, 1) if orientation >= 5 else upright
    rows = -1 if orientation in (3, 4, 6, 7) else 1
    columns = -1 if orientation in (2, 3, 7, 8) else 1
    return view[::rows, ::columns]


def _from_array(array: np.ndarray, where: str, limits: VisionLimits) -> np.ndarray:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not is_image:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; move the channels last"
        raise ArgumentError(
            f"{where}: expected an array uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got "
            f"{array.dtype} {list(array.shape[:8])}{hint}"
        )
    limits.check_size(where, array.shape[1], array.shape[0])
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.array(array[:, :, :3], order="C")
