"""Prompts with images and videos, and what the architecture makes of them before any layer runs.

Where tokens stand, which experts they ask and how pixels become patches, each written down once more
here, token by token and patch by patch, so that a mistake of the engine's shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.vision_shape import PATCH, MediaIds

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
# Rows and columns of patches, and frames. A video with more pairs of frames than rows and columns of
# tokens is one where the rules for what comes behind it differ.
IMAGE_SIZE = (6, 8)
VIDEO_SIZE, NUM_FRAMES = (4, 2), 8


@dataclass(frozen=True, slots=True)
class Picture:
    """An image or a video: uint8 ``[frames, height, width, 3]``, and where its features stand."""

    kind: str
    frames: Pixels
    first: int  # token of its prompt

    def __str__(self) -> str:
        count, height, width, _ = self.frames.shape
        size = f"{width} x {height} pixels"
        return f"an image of {size}" if self.kind == "image" else f"a video of {count} x {size}"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches."""
        count, height, width, _ = self.frames.shape
        return count, height // PATCH, width // PATCH

    @property
    def merged(self) -> tuple[int, int, int]:
        """The same of tokens: four patches are one, and two frames of a video."""
        count, rows, columns = self.grid
        return count if self.kind == "image" else count // 2, rows // 2, columns // 2

    @property
    def num_tokens(self) -> int:
        frames, rows, columns = self.merged
        return frames * rows * columns

    @property
    def stop(self) -> int:
        return self.first + self.num_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a sequence, and what it shows, in order."""

    ids: Ids
    pictures: tuple[Picture, ...] = ()

    @property
    def feature_rows(self) -> Ids:
        parts = [np.arange(each.first, each.stop) for each in self.pictures]
        return np.concatenate([np.zeros(0, np.int64), *parts])


def media_prompt(text: Ids, ids: MediaIds) -> Prompt:
    """An image and a video of noise with some of ``text`` before, between and behind them."""
    rng = np.random.default_rng(21)
    left = iter(text.tolist())
    tokens: list[int] = []
    pictures = []
    for kind, count, (rows, columns) in (
        ("image", 1, IMAGE_SIZE),
        ("video", NUM_FRAMES, VIDEO_SIZE),
    ):
        before, placeholder, behind = ids.around(kind)
        tokens += [next(left) for _ in range(4)] + [before]
        frames = rng.integers(0, 256, (count, rows * PATCH, columns * PATCH, 3), np.uint8)
        picture = Picture(kind, frames, len(tokens))
        tokens += [placeholder] * picture.num_tokens + [behind]
        pictures.append(picture)
    tokens += [next(left) for _ in range(6)]
    return Prompt(np.array(tokens, np.int64), tuple(pictures))


def positions(prompt: Prompt, rule: str) -> Ids:
    """``[3, num_tokens]``: of each token in time, rows and columns.

    Args:
        rule: ``"baidu"``: text goes on behind all positions of a video; ``"transformers"``: behind its
            rows and columns.
    """
    found: list[tuple[int, int, int]] = []
    here = 0

    def text_until(token: int) -> None:
        nonlocal here
        while len(found) < token:
            found.append((here, here, here))
            here += 1

    for picture in prompt.pictures:
        text_until(picture.first)
        frames, rows, columns = picture.merged
        found += [
            (here + t, here + y, here + x)
            for t in range(frames)
            for y in range(rows)
            for x in range(columns)
        ]
        here += max(rows, columns) if rule == "transformers" else max(frames, rows, columns)
    text_until(len(prompt.ids))
    return np.array(found, np.int64).reshape(-1, 3).T


def banks(prompt: Prompt, first_vision_id: int | None) -> Ids:
    """1 where a token asks the vision experts: features, and the tokens on both sides of them.

    Args:
        first_vision_id: by the other rule every id from this one on does.
    """
    asked = np.zeros(len(prompt.ids), np.int64)
    for picture in prompt.pictures:
        asked[picture.first - 1 : picture.stop + 1] = 1
    if first_vision_id is not None:
        asked[prompt.ids >= first_vision_id] = 1
    return asked


def patch_places(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Row and column of each patch of a frame, in the tower's order: blocks of 2 x 2 row by row."""
    for top in range(0, rows, 2):
        for left in range(0, columns, 2):
            yield from ((top + y, left + x) for y in (0, 1) for x in (0, 1))


def patches(picture: Picture, levels: Array) -> Array:
    """``[num_patches, 588]``: a channel after the other, each row by row.

    Args:
        levels: ``[3, 256]``: what each level of each channel becomes.
    """
    _, rows, columns = picture.grid
    cut = [
        [
            levels[channel][
                frame[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH, channel]
            ]
            for channel in range(3)
        ]
        for frame in picture.frames
        for y, x in patch_places(rows, columns)
    ]
    return np.array(cut).reshape(len(cut), -1)


def patch_positions(picture: Picture) -> Ids:
    """``[num_patches, 2]``: row and column of every patch, the same in every frame."""
    count, rows, columns = picture.grid
    return np.array(list(patch_places(rows, columns)) * count, np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Several prompts end to end: of every token where it stands and which experts it asks."""

    prompts: list[Prompt]
    positions: Ids  # [3, num_tokens]: time, row, column
    banks: Ids

    @classmethod
    def of(
        cls, prompts: list[Prompt], rule: str = "baidu", first_vision_id: int | None = None
    ) -> Layout:
        """As :func:`positions` and :func:`banks` of each prompt."""
        return cls(
            prompts,
            np.concatenate([positions(prompt, rule) for prompt in prompts], axis=1),
            np.concatenate([banks(prompt, first_vision_id) for prompt in prompts]),
        )

    @property
    def ids(self) -> Ids:
        return np.concatenate([prompt.ids for prompt in self.prompts])

    @property
    def pictures(self) -> list[Picture]:
        return [picture for prompt in self.prompts for picture in prompt.pictures]

    @property
    def sequences(self) -> list[slice]:
        """The tokens of each prompt."""
        ends = np.cumsum([len(prompt.ids) for prompt in self.prompts]).tolist()
        return [slice(e - len(p.ids), e) for e, p in zip(ends, self.prompts, strict=True)]

    @property
    def feature_rows(self) -> Ids:
        """The tokens that are features of images and videos."""
        pairs = zip(self.prompts, self.sequences, strict=True)
        return np.concatenate([prompt.feature_rows + rows.start for prompt, rows in pairs])
