"""The images and videos that a caller names, found before anything of them is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import InputError
from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.pixel_budget import PixelBudget
from ernie_kernels.vision.processor import PATCH_SIZE, VisionProcessor
from ernie_kernels.vision.told_size import told_size

TEXT_ALONE = "this model reads text alone; leave it out, or load an ERNIE-4.5-VL checkpoint"
KINDS = {"image_url": "image", "image": "image", "video_url": "video", "video": "video"}  # of parts


@dataclass(frozen=True, slots=True)
class MediaBudget:
    """Pixels that are left to a request."""

    stored: PixelBudget  # before the resize
    kept: PixelBudget  # after it; shared by all requests of a call
    told: set[str]  # what has taken its part already, by what messages call it


@dataclass(frozen=True, slots=True)
class MediaSource:
    """One image or video as it was given.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        source: what :meth:`.VisionProcessor.image` or ``video`` takes.
        where: what messages call it.
        frame_rate: of a list of frames, per second.
    """

    kind: str
    source: Any
    where: str
    frame_rate: Any = None

    def load(self, processor: VisionProcessor, budget: MediaBudget) -> VisualItem:
        stored = None if self.where in budget.told else budget.stored
        if self.kind == "image":
            item = processor.image(self.source, where=self.where, budget=stored)
        else:
            item = processor.video(
                self.source, frame_rate=self.frame_rate, where=self.where, budget=stored
            )
        if stored is not None:
            budget.kept.spend(self.where, math.prod(item.grid_thw) * PATCH_SIZE**2)
        return item


def budgets_of(
    prompts: Sequence[Sequence[MediaSource]], processor: VisionProcessor
) -> list[MediaBudget]:
    """Of each prompt of a call, told from the headers of its images: nothing is decoded.

    Raises:
        LimitError: an image is too large, or all together are; or there are too many.
    """
    limits = processor.limits
    kept = PixelBudget(limits.call_pixels, "of this call, resized,", "send fewer prompts at a time")
    budgets = []
    for sources in prompts:
        stored = PixelBudget(
            limits.request_pixels, "of this request", "send fewer, or scale them down"
        )
        budget = MediaBudget(stored, kept, set())
        budgets.append(budget)
        # More than these are refused for their number.
        for source in sources[: limits.images_per_request]:
            size = None
            if source.kind == "image":
                size = told_size(source.source, source.where, limits)
            if size is not None:
                stored.spend(source.where, math.prod(size))
                rows, columns = processor.target_size("image", source.where, *size)
                kept.spend(source.where, rows * columns)
                budget.told.add(source.where)
    return budgets


def sources_of_messages(messages: Sequence[Mapping[str, Any]]) -> list[MediaSource]:
    """Of all content parts that are no text, in order. The messages have been checked otherwise.

    Raises:
        InputError: a part without what it promises.
    """
    found = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, (list, tuple)):
            continue
        for number, part in enumerate(content):
            if part["type"] in KINDS:
                where = f"message {index}: content part {number}"
                found.append(_source_of_part(part, where))
    return found


def _source_of_part(part: Mapping[str, Any], where: str) -> MediaSource:
    name = part["type"]
    source = part.get(name)
    if name.endswith("_url"):
        if isinstance(source, Mapping):
            source = source.get("url")
        if not isinstance(source, str):
            raise InputError(
                f"{where}: {name}: expected an object with a url, which is a data: or file:// URL or "
                f"the path of a file, got {quoted(source)}"
            )
    elif source is None:
        raise InputError(f"{where}: {name}: missing; expected the {name} itself")
    rate = part.get("fps")
    if rate is not None and KINDS[name] != "video":
        raise InputError(f"{where}: fps: expected beside a video alone")
    return MediaSource(KINDS[name], source, where, rate)


def sources_of_prompts(data: Any, count: int) -> list[list[MediaSource]]:
    """Those of ``multi_modal_data``: of each prompt a mapping from kind to one or a list of them.

    Raises:
        TypeError: neither None, nor a mapping for one prompt, nor a list of mappings and Nones.
        InputError: not one for each prompt, or another kind.
    """
    where = "multi_modal_data"
    if data is None:
        return [[] for _ in range(count)]
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, (list, tuple)):
        raise TypeError(f"{where}: expected a list, one entry for each prompt")
    if len(data) != count:
        raise InputError(f"{where}: expected one for each of {count} prompts, got {len(data)}")
    return [_sources_of_prompt(each, f"{where}[{index}]") for index, each in enumerate(data)]


def _sources_of_prompt(data: Any, where: str) -> list[MediaSource]:
    if data is None:
        return []
    if not isinstance(data, Mapping):
        raise TypeError(f"{where}: expected a dict or None, got {type(data).__name__}")
    found = []
    for kind, given in data.items():
        if kind not in ("image", "video"):
            raise InputError(f"{where}: expected the keys image and video, got {quoted(kind)}")
        several = given if isinstance(given, (list, tuple)) else [given]
        found += [
            MediaSource(kind, each, f"{where}: {kind} {number}")
            for number, each in enumerate(several)
        ]
    return found
