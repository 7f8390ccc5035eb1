"""How pictures become pixels: the values of a checkpoint's preprocessor files, and options."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ArgumentError, ConfigError
from ernie_kernels.models.config_reader import ConfigReader
from ernie_kernels.vision.frame_choice import FRAME_RULES
from ernie_kernels.vision.resize import FACTOR, RESIZE_RULES

logger = logging.getLogger("ernie_kernels")

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
NESTED_FILE = "processor_config.json"  # holds both, as image_processor and video_processor
MAX_PIXELS = 1 << 27
# What every released checkpoint has; another value would need other code.
FIXED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "patch_size": 14,
    "merge_size": 2,
    "spatial_conv_size": 2,
}
FIXED_TIMES = {"temporal_patch_size": (1, 2), "temporal_conv_size": (2,)}
READ = frozenset(
    ("size", "min_pixels", "max_pixels", "image_mean", "image_std", "rescale_factor", "fps")
) | {"min_frames", "max_frames", "draw_on_frames"}
WITHOUT_EFFECT = frozenset(
    ("image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class")
) | {"auto_map", "font", "data_format", "input_data_format", "device", "default_to_square"}


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
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
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
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(_finite, values))):
                raise _wrong(name, "three finite numbers")
        if not all(1e-6 < abs(value) < 1e6 for value in (*self.image_std, self.rescale_factor)):
            raise _wrong("image_std, rescale_factor", "numbers of size 1e-6 to 1e6")
        if self.resize_rule not in RESIZE_RULES:
            raise _wrong("resize_rule", " or ".join(RESIZE_RULES))
        if self.frame_rule not in FRAME_RULES:
            raise _wrong("frame_rule", " or ".join(FRAME_RULES))
        if self.fps is not None and not (_finite(self.fps) and 1e-3 <= self.fps <= 1000):
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
        folder = Path(folder)
        nested = _read(folder / NESTED_FILE)
        image = nested.get("image_processor") or _read(folder / IMAGE_FILE)
        video = nested.get("video_processor") or _read(folder / VIDEO_FILE)
        found = {}
        for values, file, kind in ((image, IMAGE_FILE, "image"), (video, VIDEO_FILE, "video")):
            if not isinstance(values, Mapping):
                raise ConfigError(f"{file}: expected an object, got {quoted(values)}")
            found.update(_from_file(values, file, kind))
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise ArgumentError(f"VisionSettings: no option {quoted(unknown[0])}")
        try:
            settings = cls(**found)
        except ArgumentError as error:
            raise ConfigError(f"{IMAGE_FILE}, {VIDEO_FILE}: {error}") from None
        return replace(settings, **options)


def _wrong(name: str, expected: str) -> ArgumentError:
    return ArgumentError(f"VisionSettings: {name}: expected {expected}")


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _from_file(values: Mapping[str, Any], file: str, kind: str) -> dict[str, Any]:
    """Attributes of :class:`VisionSettings` that a file gives."""
    reader = ConfigReader(values, file)
    for key, wanted in FIXED.items():
        if values.get(key, wanted) not in (wanted, None) or (
            type(values.get(key, wanted)) not in (type(wanted), type(None))
        ):
            raise reader.fail(key, str(wanted).lower(), values[key])
    for key, choices in FIXED_TIMES.items():
        if values.get(key) is not None and values[key] not in choices:
            raise reader.fail(key, " or ".join(map(str, choices)), values[key])
    found: dict[str, Any] = {}
    size = values.get("size") or {}
    if not isinstance(size, Mapping):
        raise reader.fail("size", "an object with shortest_edge and longest_edge", size)
    for name, keys in (
        ("min", ("shortest_edge", "min_pixels")),
        ("max", ("longest_edge", "max_pixels")),
    ):
        pixels = size.get(keys[0]) or size.get(keys[1]) or values.get(keys[1])
        if pixels is not None:
            if type(pixels) is not int:
                raise reader.fail(keys[1], "a number of pixels", pixels)
            found[f"{kind}_{name}_pixels"] = pixels
    if kind == "image":
        found |= _normalisation(reader)
    else:
        found |= _frames(reader)
    known = {*FIXED, *FIXED_TIMES, *READ, *WITHOUT_EFFECT}
    unknown = sorted(key for key in values if key not in known)
    if unknown:
        logger.warning(
            "%s: %d unknown keys ignored, the first is %s", file, len(unknown), quoted(unknown[0])
        )
    return found


def _normalisation(reader: ConfigReader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("image_mean", "image_std"):
        value = reader.values.get(key)
        if value is not None:
            if not (isinstance(value, list) and len(value) == 3 and all(map(_finite, value))):
                raise reader.fail(key, "three finite numbers", value)
            found[key] = tuple(map(float, value))
    if reader.values.get("rescale_factor") is not None:
        found["rescale_factor"] = reader.positive("rescale_factor", 1 / 255)
    return found


def _frames(reader: ConfigReader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("min_frames", "max_frames"):
        if reader.values.get(key) is not None:
            if type(reader.values[key]) is not int:
                raise reader.fail(key, "a number of frames", reader.values[key])
            found[key] = reader.values[key]
    if reader.values.get("fps") is not None:
        found["fps"] = reader.positive("fps", 2.0)
    if reader.values.get("draw_on_frames") is not None:
        found["draw_timestamps"] = reader.boolean("draw_on_frames", True)
    return found
