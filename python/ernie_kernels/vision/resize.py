"""The size a picture is brought to, and the bicubic resize to it."""

from __future__ import annotations

import math

import numpy as np

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.extras import pillow

FACTOR = 28  # pixels of a patch, times patches that become one token, along a side
MAX_ASPECT = 200
STRIP_ROWS = 512
RESIZE_RULES = ("transformers", "baidu")


def target_size(
    height: int,
    width: int,
    *,
    min_pixels: int,
    max_pixels: int,
    rule: str = "transformers",
    where: str = "image",
) -> tuple[int, int]:
    """Height and width, multiples of 28, that a picture is resized to.

    Both sides are rounded to a multiple (half to even); a result beyond ``min_pixels`` or
    ``max_pixels`` is scaled back at about the same aspect.

    Args:
        rule: ``"transformers"`` refuses an aspect above 200; ``"baidu"`` first cuts such a size to
            200 and rounds to no less than 28. They differ for extreme aspects alone.

        where: what messages call the picture.

    Raises:
        InputError: a side is 0.
        LimitError: an aspect above 200, or no multiple of 28 is inside the limits.

    Source: the smart resize of transformers 5.23 and of FastDeploy's ERNIE-4.5-VL processor.
    """
    if height < 1 or width < 1:
        raise InputError(f"{where}: expected sides of at least 1 pixel, got {width} x {height}")
    least = 0
    if rule == "baidu":
        least = FACTOR
        if max(height, width) / min(height, width) > MAX_ASPECT:
            height, width = _cut_to_aspect(height, width)
    elif max(height, width) / min(height, width) > MAX_ASPECT:
        raise LimitError(
            f"{where}: {width} x {height} has an aspect above {MAX_ASPECT}; crop it, or pass "
            f"resize_rule='baidu'"
        )
    rows = max(least, round(height / FACTOR) * FACTOR)
    columns = max(least, round(width / FACTOR) * FACTOR)
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (
            max(FACTOR - least, math.floor(side / scale / FACTOR) * FACTOR)
            for side in (height, width)
        )
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / FACTOR) * FACTOR for side in (height, width))
    if rows < FACTOR or columns < FACTOR:
        raise LimitError(
            f"{where}: no multiple of {FACTOR} near {width} x {height} has {min_pixels} to {max_pixels} "
            f"pixels; raise max_pixels, or crop the image"
        )
    return rows, columns


def _cut_to_aspect(height: int, width: int) -> tuple[int, int]:
    short = max(FACTOR, round(min(height, width) / FACTOR) * FACTOR)
    long = short * MAX_ASPECT // FACTOR * FACTOR
    return (long, short) if height > width else (short, long)


def bicubic_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic resize (a = -0.5), rows first, each pass rounded to uint8.

    The order of the two passes changes single pixels by up to about 24 levels, and releases of
    Pillow choose it differently; each pass alone they compute alike. So there are two calls.

    Args:
        pixels: uint8 ``[H, W, 3]``, C-contiguous.

    Returns:
        uint8 ``[height, width, 3]``, C-contiguous.
    """
    image_module = pillow()
    bicubic = image_module.Resampling.BICUBIC
    # Strip by strip, as each row is for itself here: Pillow's copy has four bytes a pixel.
    narrowed = np.empty((len(pixels), width, 3), np.uint8)
    for top in range(0, len(pixels), STRIP_ROWS):
        strip = image_module.fromarray(pixels[top : top + STRIP_ROWS])
        narrowed[top : top + STRIP_ROWS] = np.asarray(strip.resize((width, strip.height), bicubic))
    image = image_module.fromarray(narrowed).resize((width, height), bicubic)
    return np.array(image, order="C")
