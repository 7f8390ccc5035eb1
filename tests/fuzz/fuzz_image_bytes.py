"""Encoded images: pixels inside the limits, or an error of ours that says nothing of the decoder's."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
from mutation import bytes_changed

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.limits import VisionLimits
from vision.pictures import encoded, gif_claiming, noise

ALLOWED = (InputError, LimitError)
LIMITS = VisionLimits(side=256, image_pixels=1 << 14)
ADDRESS = re.compile("0x[0-9a-f]{6,}")


def seeds() -> list[Any]:
    pixels = noise(9, 14)
    files = [
        encoded(pixels),
        encoded(pixels[:, :, 0]),
        encoded(pixels, "JPEG"),
        encoded(pixels, "JPEG", progressive=True),
        encoded(pixels, "WEBP"),
        encoded(pixels, "WEBP", lossless=True),
        encoded(
            pixels, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        ),
    ]
    return [{"file": data.decode("latin-1")} for data in files]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    if draw.random() < 0.01:
        return {
            "file": gif_claiming(draw.randrange(1 << 16), draw.randrange(300)).decode("latin-1")
        }
    data, lender = (value["file"].encode("latin-1") for value in (case, other))
    return {"file": bytes_changed(data, lender, draw).decode("latin-1")}


def is_allowed(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, ALLOWED) and said.startswith("image 1: ") and not ADDRESS.search(said)


def run(case: Any) -> None:
    pixels = load_image(case["file"].encode("latin-1"), "image 1", LIMITS)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    assert 1 <= max(pixels.shape[:2]) <= 256
    assert pixels.shape[0] * pixels.shape[1] <= 1 << 14
