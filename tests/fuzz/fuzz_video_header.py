"""GIFs walked and decoded, and whatever else begins like a video: frames, or an error of ours.

Video files are decoded in a process of their own, which a case here would wait for a second each: of
them the first bytes, which choose the decoder, are searched.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from mutation import bytes_changed

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.gif import read_gif_header
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.processor import VisionProcessor
from ernie_kernels.vision.settings import VisionSettings
from ernie_kernels.vision.video import container_of
from vision.pictures import gif

ALLOWED = (InputError, LimitError)
LIMITS = VisionLimits(side=64, image_pixels=4096, frames=24, video_pixels=1 << 16)
SETTINGS = VisionSettings(video_min_pixels=784, video_max_pixels=7840, draw_timestamps=False)
PROCESSOR = VisionProcessor(SETTINGS, LIMITS)
HEADS = [b"\0\0\0\x18ftypmp42", b"\x1a\x45\xdf\xa3abcd", b"RIFF\x10\0\0\0AVI LIST"]


def seeds() -> list[Any]:
    films = [gif(1), gif(2, size=(9, 7)), gif(5, milliseconds=500), gif(3, milliseconds=0)]
    return [{"file": data.decode("latin-1")} for data in [*films, *HEADS]]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    data, lender = (value["file"].encode("latin-1") for value in (case, other))
    return {"file": bytes_changed(data, lender, draw).decode("latin-1")}


def run(case: Any) -> None:
    data = case["file"].encode("latin-1")
    if data[:4] != b"GIF8":
        assert container_of(data, "video 1") in ("mov", "matroska", "avi")
        return
    header = read_gif_header(data, "video 1", LIMITS)
    assert 1 <= header.num_frames <= 24
    assert 1e-3 <= header.rate <= 50
    item = PROCESSOR.video(data, where="video 1")
    frames, rows, columns = item.grid_thw
    assert frames % 2 == rows % 2 == columns % 2 == 0
    assert item.pixels.shape == (frames, rows * 14, columns * 14, 3)
    assert item.pixels.dtype == np.uint8
