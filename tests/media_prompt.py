"""Prompts with images and videos for tiny vision-language checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_kernels.models.media_positions import IMAGE, TEXT, VIDEO, merged_grid
from ernie_kernels.vision.item import VisualItem

Grid = tuple[int, int, int]


@dataclass
class MediaPrompt:
    """One sequence, as Hugging Face's processor makes it."""

    ids: list[int]
    types: list[int]
    banks: list[int]
    images: list[Grid]
    videos: list[Grid]
    image_patches: np.ndarray
    video_patches: np.ndarray

    def arguments(self) -> dict[str, Any]:
        """Of :meth:`LLM.forward`, without the ids."""
        return together([self])


def together(prompts: Sequence[MediaPrompt]) -> dict[str, Any]:
    """Arguments of :meth:`LLM.forward` for several sequences."""
    arguments: dict[str, Any] = {
        "mm_token_type_ids": [p.types for p in prompts],
        "moe_mm_token_type_ids": [p.banks for p in prompts],
    }
    for patches, grids, names in (
        ([p.image_patches for p in prompts], [g for p in prompts for g in p.images],
         ("pixel_values", "image_grid_thw")),
        ([p.video_patches for p in prompts], [g for p in prompts for g in p.videos],
         ("pixel_values_videos", "video_grid_thw")),
    ):  # fmt: skip
        if grids:
            arguments[names[0]] = np.concatenate(patches)
            arguments[names[1]] = np.array(grids, np.int64)
    return arguments


def media_prompt(
    rng: np.random.Generator,
    config: dict[str, Any],
    *media: tuple[int, Grid],
    text: int = 5,
) -> MediaPrompt:
    """``text`` tokens before, between and behind media, each ``(IMAGE or VIDEO, grid)``."""
    prompt = MediaPrompt([], [], [], [], [], patches(rng, []), patches(rng, []))
    around = {
        IMAGE: ("image_start_token_id", "im_patch_id", "image_end_token_id"),
        VIDEO: ("video_start_token_id", "video_token_id", "video_end_token_id"),
    }

    def add(ids: list[int], kind: int, bank: int) -> None:
        prompt.ids += ids
        prompt.types += [kind] * len(ids)
        prompt.banks += [bank] * len(ids)

    def some_text() -> None:
        add(rng.integers(0, 180, text).tolist(), TEXT, TEXT)

    some_text()
    for kind, grid in media:
        start, placeholder, end = (config[key] for key in around[kind])
        add([start], TEXT, kind)
        add([placeholder] * int(np.prod(merged_grid(grid))), kind, kind)
        add([end], TEXT, kind)
        some_text()
        (prompt.images if kind == IMAGE else prompt.videos).append(grid)
    prompt.image_patches = patches(rng, prompt.images)
    prompt.video_patches = patches(rng, prompt.videos)
    return prompt


def patches(rng: np.random.Generator, grids: Sequence[Grid]) -> np.ndarray:
    """As of noise, rescaled and normalised: float32 ``[num_patches, 588]``."""
    count = sum(t * h * w for t, h, w in grids)
    return rng.uniform(-1.8, 2.2, (count, 588)).astype(np.float32)


def visual_item(rng: np.random.Generator, kind: str, grid: Grid) -> VisualItem:
    """Noise of the right size, without a resize."""
    t, h, w = grid
    pixels = rng.integers(0, 256, (t, 14 * h, 14 * w, 3), np.uint8)
    return VisualItem(kind, grid, pixels, None, rng.bytes(16))
