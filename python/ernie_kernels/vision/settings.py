"""How pictures become pixels: the values of a checkpoint's preprocessor files, and options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ArgumentError, ConfigError
from ernie_kernels.vision.frame_choice import FRAME_RULES
from ernie_kernels.vision.preprocessor_files import (
    IMAGE_FILE,
    MEAN,
    RESCALE_FACTOR,
    STD,
    VIDEO_FILE,
    attributes_of_files,
    is_finite,
)
from ernie_kernels.vision.resize import FACTOR, RESIZE_RULES

MAX_PIXELS = 1 << 27
MAX_LEVEL = 1e6  # so that none becomes infinite in float32


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How images and videos are prepared. The defaults are those of the released checkpoints.

    Attributes:
        image_min_pixels, image_max_pixels: of an image after the resize.
        video_min_pixels, video_max_pixels: of each frame after it.
        image_mean, image_std, rescale_factor: a level v of a channel becomes
            (v * rescale_factor - mean) / std.
        resize_rule: ``"transformers"`` or ``"baidu"``, see :func:`target_size`.
        frame_rule, fps, min_frames, max_frames: see :func:`chosen_frames`.
        draw_timestamps: whether each frame shows its time.
    """

    image_min_pixels: int = 56 * 56
    image_max_pixels: int = 6177 * 784
    video_min_pixels: int = 299 * 784
    video_max_pixels: int = 1196 * 784
    image_mean: tuple[float, float, float] = MEAN
    image_std: tuple[float, float, float] = STD
    rescale_factor: float = RESCALE_FACTOR
    resize_rule: str = "transformers"
    frame_rule: str = "baidu"
    fps: float | None = 2.0
    min_frames: int = 16
    max_frames: int = 180
    draw_timestamps: bool = True

    def __post_init__(self) -> None:
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if not (type(low) is type(high) is int and 0 < low <= high <= MAX_PIXELS):
                raise _wrong(f"{kind}_min_pixels, {kind}_max_pixels", f"1..{MAX_PIXELS}, ascending")
        if self.image_max_pixels < FACTOR**2 or self.video_max_pixels < FACTOR**2:
            raise _wrong("image_max_pixels, video_max_pixels", f"at least {FACTOR**2}")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if isinstance(values, list):  # as JSON has them
                values = tuple(values)
                object.__setattr__(self, name, values)
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(is_finite, values))):
                raise _wrong(name, "three finite numbers")
            if not all(abs(value) < MAX_LEVEL for value in values):
                raise _wrong(name, f"three numbers below {MAX_LEVEL:g} in size")
        if not all(
            1e-6 < abs(value) < MAX_LEVEL for value in (*self.image_std, self.rescale_factor)
        ):
            raise _wrong("image_std, rescale_factor", "numbers of size 1e-6 to 1e6")
        if self.resize_rule not in RESIZE_RULES:
            raise _wrong("resize_rule", " or ".join(RESIZE_RULES))
        if self.frame_rule not in FRAME_RULES:
            raise _wrong("frame_rule", " or ".join(FRAME_RULES))
        if self.fps is not None and not (is_finite(self.fps) and 1e-3 <= self.fps <= 1000):
            raise _wrong("fps", "None or a number 0.001..1000")
        counts = (self.min_frames, self.max_frames)
        if not (all(type(c) is int for c in counts) and 1 <= counts[0] <= counts[1] <= 4096):
            raise _wrong("min_frames, max_frames", "1..4096, ascending")
        if type(self.draw_timestamps) is not bool:
            raise _wrong("draw_timestamps", "True or False")

    def levels(self) -> np.ndarray:
        """float32 ``[3, 256]``: what each level of each channel becomes, as transformers rounds it."""
        scaled = (np.arange(256) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(v, np.float32)[:, None] for v in (self.image_mean, self.image_std))
        return (scaled[None, :] - mean) / std

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> VisionSettings:
        """The settings of a checkpoint folder; files that are not there leave the defaults.

        Read are preprocessor_config.json, video_preprocessor_config.json and, before them,
        processor_config.json, in the words of transformers and of Baidu's own processor.

        Args:
            options: attributes of this class, which go before the files.

        Raises:
            ConfigError: a malformed file, or a value that this version has no code for.
            ArgumentError: an option out of range or unknown.
        """
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise ArgumentError(f"VisionSettings: no option {quoted(unknown[0])}")
        found = attributes_of_files(Path(folder), options)
        try:
            settings = cls(**found)
        except ArgumentError as error:
            raise ConfigError(f"{IMAGE_FILE}, {VIDEO_FILE}: {error}") from None
        return replace(settings, **options)


def _wrong(name: str, expected: str) -> ArgumentError:
    return ArgumentError(f"VisionSettings: {name}: expected {expected}")
