"""What a checkpoint's preprocessor files say, as attributes of :class:`.VisionSettings`.

Three writers are understood: transformers, whose processor of this family has two sections, Baidu's
image processor, and Baidu's processor around it. A key that changes pixels in theirs is read here, or
refused by its name where it asks for what there is no code for; one that no reader of theirs heeds is
ignored. So is ``font``: times are drawn in Pillow's own, whatever the file names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_reader import ConfigReader

logger = logging.getLogger("ernie_kernels")

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # may hold both, as image_processor and video_processor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE_FACTOR = 1 / 255

# Another value would need other code.
FIXED: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "resample": (3,),
    "patch_size": (14,),
    "merge_size": (2,),
    "spatial_conv_size": (2,),
    "temporal_conv_size": (2,),
}
# An image is one frame, whatever is written here.
TEMPORAL: dict[str, tuple[Any, ...]] = {"image": (1, 2), "video": (2,)}
FIXED_OF_FRAMES: dict[str, tuple[Any, ...]] = {"do_sample_frames": (True,), "num_frames": ()}
FIXED_OF_PROCESSOR: dict[str, tuple[Any, ...]] = {
    "spatial_conv_size": (2,),
    "temporal_conv_size": (2,),
    "video_target_frames": (-1,),
    "video_frames_sample": ("leading",),
}
SIZES = {"min": ("shortest_edge", "min_pixels"), "max": ("longest_edge", "max_pixels")}
WITHOUT_EFFECT = frozenset(
    [
        "image_processor_type",
        "video_processor_type",
        "feature_extractor_type",
        "processor_class",
        "auto_map",
        "font",
        "data_format",
        "input_data_format",
        "device",
        "return_tensors",
        "return_metadata",
        "video_metadata",
        "default_to_square",
        "do_center_crop",
        "crop_size",
        "do_pad",
        "pad_size",
        "disable_grouping",
        "image_seq_length",
    ]
)


@dataclass(frozen=True, slots=True)
class Section:
    """What is said of one kind; ``values`` is None where nothing is."""

    values: Mapping[str, Any] | None
    file: str

    @property
    def reader(self) -> ConfigReader:
        return ConfigReader(self.values or {}, self.file)


def attributes_of_files(folder: Path, decided: Container[str]) -> dict[str, Any]:
    """Those that the files of ``folder`` give.

    Args:
        decided: attributes that the caller gives, about which files may contradict each other.

    Raises:
        ConfigError: a malformed file, or a value that this version has no code for.
    """
    processor = _read(folder / PROCESSOR_FILE)
    image = _section(processor, "image_processor", folder / IMAGE_FILE)
    video = _section(processor, "video_processor", folder / VIDEO_FILE)
    found: dict[str, Any] = {}
    for kind, section in (("image", image), ("video", video)):
        _check_fixed(section.reader, FIXED | {"temporal_patch_size": TEMPORAL[kind]})
        _tell_unknown(section.reader, OF_SECTIONS)
        for end, keys in SIZES.items():
            name = f"{kind}_{end}_pixels"
            if name not in decided:
                found |= _pixels(section.reader, name, keys)
    found |= _taken(image.reader, NORMALISATION)
    if video.values is not None:
        _check_same_levels(found, video.reader, decided)
    # Without a file of its own the video processor of transformers reads that of images.
    of_frames = image if video.values is None else video
    _check_fixed(of_frames.reader, FIXED_OF_FRAMES)
    found |= _taken(of_frames.reader, FRAMES)
    # Baidu's processor goes before the image processor in it.
    reader = ConfigReader(processor, PROCESSOR_FILE)
    _check_fixed(reader, FIXED_OF_PROCESSOR)
    _tell_unknown(reader, OF_PROCESSOR)
    return found | _taken(reader, PROCESSOR)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _section(processor: Mapping[str, Any], key: str, file: Path) -> Section:
    values = processor.get(key)
    if values is None:
        return Section(read_json(file) if file.exists() else None, file.name)
    name = f"{PROCESSOR_FILE}: {key}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name}: expected an object, got {quoted(values)}")
    return Section(values, name)


def _check_fixed(reader: ConfigReader, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, choices in fixed.items():
        value = reader.values.get(key)
        if value is None or any(type(value) is type(c) and value == c for c in choices):
            continue
        expected = " or ".join(str(c).lower() for c in choices) or "null"
        raise reader.fail(key, expected, value)


def _pixels(reader: ConfigReader, name: str, keys: tuple[str, str]) -> dict[str, int]:
    """A limit of pixels, which may stand in ``size`` under either name, or beside it under the second."""
    size = reader.values.get("size")
    if size is None:
        size = {}
    known = [key for keys in SIZES.values() for key in keys]
    if not isinstance(size, Mapping):
        raise reader.fail("size", "an object with shortest_edge and longest_edge", size)
    for key, value in size.items():
        if key not in known and value is not None:
            raise reader.fail("size", "shortest_edge and longest_edge, numbers of pixels", key)
    given: dict[str, int] = {}
    places = [(f"size: {key}", size.get(key)) for key in keys]
    for key, value in (*places, (keys[1], reader.values.get(keys[1]))):
        if type(value) not in (int, type(None)):
            raise reader.fail(key, "a number of pixels", value)
        if value is not None:
            given[key] = value
    if len(set(given.values())) > 1:
        raise ConfigError(
            f"{reader.file}: {' and '.join(given)} differ; make them one, or pass {name}"
        )
    return {name: next(iter(given.values()))} if given else {}


def _check_same_levels(
    image: Mapping[str, Any], video: ConfigReader, decided: Container[str]
) -> None:
    """Raises ConfigError where frames would be normalised otherwise than images."""
    usual: dict[str, Any] = {"image_mean": MEAN, "image_std": STD, "rescale_factor": RESCALE_FACTOR}
    of_images, of_videos = usual | dict(image), usual | _taken(video, NORMALISATION)
    for key in usual:
        if of_images[key] != of_videos[key] and key not in decided:
            raise video.fail(
                key, f"that of images, {quoted(of_images[key])}, for both alike", of_videos[key]
            )


def _taken(reader: ConfigReader, keys: Mapping[str, Taken]) -> dict[str, Any]:
    """The attributes of those of ``keys`` that are there."""
    return {
        name: read(reader, key)
        for key, (name, read) in keys.items()
        if reader.values.get(key) is not None
    }


def _tell_unknown(reader: ConfigReader, known: Container[str]) -> None:
    unknown = sorted(key for key in reader.values if key not in known)
    if unknown:
        logger.warning(
            "%s: %d unknown keys ignored, the first is %s",
            reader.file, len(unknown), quoted(unknown[0]),
        )  # fmt: skip


def _three(reader: ConfigReader, key: str) -> tuple[float, ...]:
    value = reader.values[key]
    if not (isinstance(value, list) and len(value) == 3 and all(map(is_finite, value))):
        raise reader.fail(key, "three finite numbers", value)
    return tuple(map(float, value))


def is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _integer(reader: ConfigReader, key: str) -> int:
    if type(reader.values[key]) is not int:
        raise reader.fail(key, "an integer", reader.values[key])
    return reader.values[key]


def _positive(reader: ConfigReader, key: str) -> float:
    return reader.positive(key, 1.0)


def _boolean(reader: ConfigReader, key: str) -> bool:
    return reader.boolean(key, True)


# Of a key its attribute, and how it is read.
Taken = tuple[str, Callable[[ConfigReader, str], Any]]
NORMALISATION: dict[str, Taken] = {
    "image_mean": ("image_mean", _three),
    "image_std": ("image_std", _three),
    "rescale_factor": ("rescale_factor", _positive),
}
FRAMES: dict[str, Taken] = {
    "fps": ("fps", _positive),
    "min_frames": ("min_frames", _integer),
    "max_frames": ("max_frames", _integer),
    "draw_on_frames": ("draw_timestamps", _boolean),
}
PROCESSOR: dict[str, Taken] = {
    "image_min_pixels": ("image_min_pixels", _integer),
    "image_max_pixels": ("image_max_pixels", _integer),
    "video_min_pixels": ("video_min_pixels", _integer),
    "video_max_pixels": ("video_max_pixels", _integer),
    "video_fps": ("fps", _positive),
    "video_min_frames": ("min_frames", _integer),
    "video_max_frames": ("max_frames", _integer),
}
OF_SECTIONS = WITHOUT_EFFECT.union(
    FIXED, FIXED_OF_FRAMES, NORMALISATION, FRAMES, *SIZES.values(), ("size", "temporal_patch_size")
)
OF_PROCESSOR = WITHOUT_EFFECT.union(
    FIXED_OF_PROCESSOR, PROCESSOR, ("image_processor", "video_processor", "chat_template")
)
