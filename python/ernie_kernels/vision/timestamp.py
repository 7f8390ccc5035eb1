"""The time of a frame, drawn into its corner for the model to read."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ernie_kernels.errors import UnsupportedError
from ernie_kernels.vision.extras import pillow

RELATIVE_SIZE = 0.1  # of the text to the frame's shorter side, and of the outline to the text


def timestamp_text(seconds: float) -> str:
    """``time: HH:MM:SS.ss``; 59.999 s is ``00:00:60.00``, as the model was taught."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(int(minutes), 60)
    return f"time: {hours:02d}:{minute:02d}:{second:05.2f}"


def draw_timestamp(pixels: np.ndarray, seconds: float) -> np.ndarray:
    """A copy of a frame with its time at the top left, black with a white outline.

    The font is the one that Pillow carries (Aileron), not the Roboto of the reference: the model
    has to read the text, and single pixels differ between releases of FreeType too. A frame whose
    shorter side is below 10 pixels has no room and is returned as it is.

    Args:
        pixels: uint8 ``[H, W, 3]``, at its original size.
    """
    size = int(min(pixels.shape[:2]) * RELATIVE_SIZE)
    if size < 1:
        return pixels
    from PIL import ImageDraw

    image = pillow().fromarray(pixels)
    ImageDraw.Draw(image).text(
        (0, 0),
        timestamp_text(seconds),
        font=_font(size),
        fill=(0, 0, 0),
        stroke_width=int(size * RELATIVE_SIZE),
        stroke_fill=(255, 255, 255),
    )
    return np.array(image, order="C")


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Any:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UnsupportedError(
            "video: this build of Pillow cannot draw text (no FreeType); install another, or pass "
            "draw_timestamps=False"
        )
    return font
