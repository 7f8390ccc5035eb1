"""From what a user gives to :class:`VisualItem`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.memory_errors import reporting_memory
from ernie_kernels.vision.digest import item_key
from ernie_kernels.vision.frame_choice import chosen_frames
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.pixel_budget import PixelBudget
from ernie_kernels.vision.resize import bicubic_resize, target_size
from ernie_kernels.vision.settings import VisionSettings
from ernie_kernels.vision.sources import Source
from ernie_kernels.vision.timestamp import draw_timestamp
from ernie_kernels.vision.video import Video, open_video

PATCH_SIZE = 14
PATCH_VALUES = 3 * PATCH_SIZE**2
MERGE_SIZE = 2
MAX_GRID_SIDE = 1 << 16


class VisionProcessor:
    """Prepares images and videos as one checkpoint wants them.

    It keeps nothing of what it is given, so it may be called from several threads at once.
    """

    def __init__(
        self, settings: VisionSettings | None = None, limits: VisionLimits | None = None
    ) -> None:
        self.settings = settings or VisionSettings()
        self.limits = limits or VisionLimits()
        self.levels = self.settings.levels()
        # What else decides the features of given pixels. How they were made does not.
        self._preprocessing = self.levels.tobytes()

    @classmethod
    def from_folder(
        cls, folder: str | Path, limits: VisionLimits | None = None, **options: Any
    ) -> VisionProcessor:
        """With the settings of a checkpoint folder; see :meth:`VisionSettings.from_folder`."""
        return cls(VisionSettings.from_folder(folder, **options), limits)

    def image(
        self, source: Source, *, where: str = "image", budget: PixelBudget | None = None
    ) -> VisualItem:
        """One image.

        Args:
            source: encoded PNG, JPEG or WebP as bytes, path or data: URL; a Pillow image; an array.
            where: what messages call it, such as ``"image 2"``.
            budget: of pixels, which those of the image take before it is resized.

        Raises:
            OutOfMemoryError: the host has no memory for it.
            Others: what :func:`load_image` and :func:`target_size` raise.
        """
        with reporting_memory(where):
            pixels = load_image(source, where, self.limits)
            if budget is not None:
                budget.spend(where, pixels.shape[0] * pixels.shape[1])
            rows, columns = self.target_size("image", where, *pixels.shape[:2])
            return self._item("image", bicubic_resize(pixels, rows, columns)[None])

    def video(
        self,
        source: Source,
        *,
        frame_rate: float | None = None,
        where: str = "video",
        budget: PixelBudget | None = None,
    ) -> VisualItem:
        """One video.

        Args:
            source: MP4, WebM, Matroska, AVI (extra ``video``) or GIF as path, bytes or data: URL; or
                a sequence of images of one size; or an array uint8 ``[frames, H, W, 3]``.
            frame_rate: of a sequence, frames per second. None: all frames are kept, up to
                ``max_frames``, and their times are as if there were 24.
            budget: of pixels, which the frames that are kept take before they are decoded.

        Raises:
            InputError: not a readable video, no frames, frames of several sizes.
            LimitError: beyond the limits of frames, pixels, bytes or time.
            UnsupportedError: the extra that it needs is missing.
            OutOfMemoryError: the host has no memory for it.
        """
        is_rate = type(frame_rate) in (int, float) and 1e-3 <= frame_rate <= 1e5  # type: ignore[operator]
        if frame_rate is not None and not is_rate:
            raise ArgumentError(f"{where}: frame_rate: expected a number 0.001..100000")
        with (
            reporting_memory(where),
            open_video(source, where, self.limits, frame_rate) as video,
        ):
            known_rate = frame_rate is not None or not isinstance(source, (list, tuple, np.ndarray))
            indices = self._choose(video, where, known_rate)
            if budget is not None:
                budget.spend(where, len(indices) * video.width * video.height)
            return self._item("video", self._frames(video, indices, where))

    def from_patches(
        self,
        kind: str,
        pixel_values: np.ndarray,
        grid_thw: np.ndarray,
        *,
        names: tuple[str, str] = ("pixel_values", "grid_thw"),
    ) -> list[VisualItem]:
        """Items of what Hugging Face's processor makes of several images or videos.

        Args:
            kind: ``"image"`` or ``"video"``.
            pixel_values: float32 ``[patches, 588]``, those of all items one after the other.
            grid_thw: int64 ``[n, 3]``.
            names: what messages call the two arrays.

        Raises:
            ArgumentError: another rank, dtype or shape.
            InputError: grids that do not fit the patches, or values that are not finite.
        """
        values_name, grid_name = names
        if kind not in ("image", "video"):
            raise ArgumentError("kind: expected 'image' or 'video'")
        patches, grids = np.asarray(pixel_values), np.asarray(grid_thw)
        if patches.dtype != np.float32 or patches.ndim != 2 or patches.shape[1] != PATCH_VALUES:
            raise ArgumentError(
                f"{values_name}: expected float32 [patches, {PATCH_VALUES}], got {patches.dtype} "
                f"{list(patches.shape[:8])}"
            )
        if grids.dtype.kind not in "iu" or grids.ndim != 2 or grids.shape[1] != 3:
            raise ArgumentError(
                f"{grid_name}: expected integers [n, 3], got {grids.dtype} {list(grids.shape[:8])}"
            )
        grid_list = [_checked_grid(kind, row, n, grid_name) for n, row in enumerate(grids.tolist())]
        total = sum(map(math.prod, grid_list))
        if total != len(patches):
            raise InputError(
                f"{grid_name}: names {total} patches, {values_name} holds {len(patches)}"
            )
        items, begin = [], 0
        for number, grid in enumerate(grid_list):
            end = begin + math.prod(grid)
            own = np.array(patches[begin:end], order="C")
            wrong = np.flatnonzero(~np.isfinite(own))
            if len(wrong):
                raise InputError(
                    f"{values_name}: {kind} {number}: {len(wrong)} values are not finite, the first in "
                    f"row {wrong[0] // PATCH_VALUES}"
                )
            items.append(VisualItem(kind, grid, None, own, item_key(kind, grid, b"", own)))
            begin = end
        return items

    def target_size(self, kind: str, where: str, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image, or frame of a video, is resized to; see :func:`target_size`."""
        settings = self.settings
        low, high = (getattr(settings, f"{kind}_{end}_pixels") for end in ("min", "max"))
        return target_size(
            height,
            width,
            min_pixels=low,
            max_pixels=high,
            rule=settings.resize_rule,
            where=where,
        )

    def _choose(self, video: Video, where: str, known_rate: bool) -> np.ndarray:
        limits, settings = self.limits, self.settings
        limits.check_size(where, video.width, video.height)
        if video.num_frames < 1:
            raise InputError(f"{where}: a video without frames")
        if not (math.isfinite(video.rate) and 1e-3 <= video.rate <= 1e5):
            raise InputError(f"{where}: its frames per second are not told or not possible")
        seconds = video.num_frames / video.rate
        if known_rate and seconds > limits.video_seconds:
            raise LimitError(
                f"{where}: plays {seconds:.0f} s, the limit is {limits.video_seconds:g}; shorten it"
            )
        indices = chosen_frames(
            video.num_frames,
            video.rate,
            rule=settings.frame_rule,
            fps=settings.fps if known_rate else None,
            min_frames=settings.min_frames,
            max_frames=settings.max_frames,
        )
        if len(indices) > limits.frames:
            raise LimitError(f"{where}: {len(indices)} frames, the limit is {limits.frames}")
        pixels = len(indices) * video.width * video.height
        if pixels > limits.video_pixels:
            raise LimitError(
                f"{where}: {len(indices)} frames of {video.width} x {video.height} have {pixels} pixels, "
                f"the limit is {limits.video_pixels}; scale it down or take fewer frames"
            )
        return indices

    def _frames(self, video: Video, indices: np.ndarray, where: str) -> np.ndarray:
        """The chosen frames, stamped, resized, one more where they are odd: uint8 [t, H, W, 3]."""
        stored: tuple[int, ...] = ()
        result = np.empty((0, 0, 0, 3), np.uint8)
        for place, pixels in enumerate(video.frames(indices)):
            if place == 0:
                stored = pixels.shape
                rows, columns = self.target_size("video", where, *pixels.shape[:2])
                result = np.empty((len(indices) + len(indices) % 2, rows, columns, 3), np.uint8)
            elif pixels.shape != stored:
                raise InputError(f"{where}: frames of several sizes; give them one")
            if self.settings.draw_timestamps:
                pixels = draw_timestamp(pixels, int(indices[place]) / video.rate)
            result[place] = bicubic_resize(pixels, *result.shape[1:3])
        result[len(indices) :] = result[len(indices) - 1]
        return result

    def _item(self, kind: str, pixels: np.ndarray) -> VisualItem:
        grid = (pixels.shape[0], pixels.shape[1] // PATCH_SIZE, pixels.shape[2] // PATCH_SIZE)
        return VisualItem(
            kind, grid, pixels, None, item_key(kind, grid, self._preprocessing, pixels)
        )


def _checked_grid(kind: str, row: list[int], number: int, name: str) -> tuple[int, int, int]:
    frames, rows, columns = row
    is_even = rows % MERGE_SIZE == columns % MERGE_SIZE == 0 and (
        kind == "image" or frames % 2 == 0
    )
    in_range = all(1 <= side <= MAX_GRID_SIDE for side in row) and (kind == "video" or frames == 1)
    if not (is_even and in_range):
        raise InputError(
            f"{name}: {kind} {number}: expected {'1 frame' if kind == 'image' else 'even frames'} and "
            f"even rows and columns, got {row}"
        )
    return frames, rows, columns
