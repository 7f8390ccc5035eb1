"""Frames of a GIF: counted and timed from its blocks, decoded by Pillow."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.extras import pillow
from ernie_kernels.vision.limits import VisionLimits

# What viewers do with a frame that says it lasts 0 or 1 hundredths of a second.
SHORTEST_DELAY, USUAL_DELAY = 2, 10
BYTES_PER_BLOCK = 16  # on average at least; a file of smaller blocks only costs time to walk


@dataclass(frozen=True, slots=True)
class GifHeader:
    """Size, number of frames and frames per second of a GIF."""

    width: int
    height: int
    num_frames: int
    rate: float


def read_gif_header(data: bytes, where: str, limits: VisionLimits) -> GifHeader:
    """Walks the blocks without decoding any.

    The canvas that is returned is as large as the largest frame, which may reach beyond what the
    file's own header says.

    Raises:
        InputError: malformed, or no frame.
        LimitError: more frames than ``limits.frames``, or blocks too small to be worth a walk.
    """
    try:
        return _walk(data, where, limits)
    except IndexError:
        raise _unreadable(where) from None


def _walk(data: bytes, where: str, limits: VisionLimits) -> GifHeader:
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    at = 13 + _table_bytes(data[10])
    num_frames = hundredths = 0
    delay = USUAL_DELAY
    blocks_left = 1024 + len(data) // BYTES_PER_BLOCK
    while data[at] != 0x3B:
        if data[at] == 0x2C:  # an image
            left, top, w, h = (
                int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7)
            )
            width, height = max(width, left + w), max(height, top + h)
            at += 10 + _table_bytes(data[at + 9]) + 1
            num_frames += 1
            hundredths += delay
            delay = USUAL_DELAY
            if num_frames > limits.frames:
                raise LimitError(
                    f"{where}: more than {limits.frames} frames in a GIF; shorten it or pass a video"
                )
        elif data[at] == 0x21:  # an extension
            if data[at + 1] == 0xF9 and data[at + 2] >= 3:
                stored = int.from_bytes(data[at + 4 : at + 6], "little")
                delay = stored if stored >= SHORTEST_DELAY else USUAL_DELAY
            at += 2
        else:
            raise _unreadable(where)
        while (length := data[at]) != 0:
            at += 1 + length
            blocks_left -= 1
            if blocks_left < 0:
                raise LimitError(f"{where}: a GIF of very small blocks; save it again")
        at += 1
        if at >= len(data) and num_frames:
            break  # many writers forget the last byte
    if num_frames == 0:
        raise InputError(f"{where}: a GIF without frames")
    return GifHeader(width, height, num_frames, 100 * num_frames / hundredths)


def _table_bytes(flags: int) -> int:
    return 3 << 1 + (flags & 7) if flags & 0x80 else 0


def _unreadable(where: str) -> InputError:
    return InputError(f"{where}: not a readable GIF; convert it to MP4")


def gif_frames(
    data: bytes, indices: np.ndarray, where: str, limits: VisionLimits
) -> Iterator[np.ndarray]:
    """The frames at ``indices`` (ascending), one after the other, uint8 ``[H, W, 3]``.

    A frame is what it changes in the one before it, so all up to the last of them are decoded.

    Raises:
        InputError: a frame that cannot be decoded.
        LimitError: the decoding takes more than ``limits.decode_seconds`` of processor time.
    """
    image_module = pillow()
    wanted = set(indices.tolist())
    seconds = 0.0
    try:
        with image_module.open(io.BytesIO(data), formats=("GIF",)) as image:
            for index in range(int(indices[-1]) + 1):
                begin = time.thread_time()
                image.seek(index)
                limits.check_size(where, *image.size)
                image.load()
                pixels = np.array(image.convert("RGB"), order="C") if index in wanted else None
                seconds += time.thread_time() - begin
                if seconds > limits.decode_seconds:
                    raise LimitError(
                        f"{where}: not decoded within {limits.decode_seconds:g} s; shorten it or "
                        "raise decode_seconds"
                    )
                if pixels is not None:
                    yield pixels
    except (MemoryError, LimitError, GeneratorExit):
        raise
    except Exception:  # noqa: BLE001  (decoders raise whatever they like)
        raise _unreadable(where) from None
