"""From what a user calls an image to its pixels: uint8 ``[H, W, 3]``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.vision.extras import pillow
from ernie_kernels.vision.image_header import read_image_header, unreadable
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.sources import Source, encoded_bytes, is_encoded

ORIENTATION_TAG = 0x0112  # of EXIF
PREMULTIPLIED = ("La", "RGBa")


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
        data = encoded_bytes(
            source, where, limits, limits.image_bytes, lambda head: _inspect(head, where, limits)
        )
        return _decode(data, where, limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, where, limits)
    if _is_pillow_image(source):
        limits.check_size(where, *source.size)
        return _to_rgb(source, where, limits)
    raise TypeError(
        f"{where}: expected a path, bytes, a data: URL, a Pillow image or a numpy array, got "
        f"{type(source).__name__}"
    )


def _is_pillow_image(source: Any) -> bool:
    # Asked of the type, so that arrays and files of another kind need no Pillow.
    names = {f"{base.__module__}.{base.__name__}" for base in type(source).__mro__}
    return "PIL.Image.Image" in names


def _inspect(head: bytes, where: str, limits: VisionLimits) -> None:
    try:
        header = read_image_header(head, where)
    except InputError:  # the rest of the file decides
        return
    limits.check_size(where, header.width, header.height)


def _decode(data: bytes, where: str, limits: VisionLimits) -> np.ndarray:
    header = read_image_header(data, where)
    limits.check_size(where, header.width, header.height)
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
    with image:
        return _to_rgb(image, where, limits)


def _to_rgb(image: Any, where: str, limits: VisionLimits) -> np.ndarray:
    try:
        image.load()
        limits.check_size(where, *image.size)
        image = _upright(image)
        if image.mode.startswith("I;16"):
            # convert() would clip: all but the darkest 256 of 65536 levels would be white.
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode in PREMULTIPLIED:  # Pillow has no direct way to RGB
            image = image.convert(image.mode.upper())
        return np.array(image.convert("RGB"), order="C")
    except (MemoryError, LimitError):
        raise
    except Exception:  # noqa: BLE001  (see above)
        raise unreadable(where) from None


def _upright(image: Any) -> Any:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (broken metadata is no reason to refuse the pixels)
        return image
    turn = pillow().Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    how = turns.get(orientation) if isinstance(orientation, int) else None
    return image if how is None else image.transpose(how)


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
