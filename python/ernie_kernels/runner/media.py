"""What images and videos make of a prompt: places, positions, banks and what stands there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels.models.vision_config import TEMPORAL_MERGE_SIZE
from ernie_kernels.vision.item import VisualItem

if TYPE_CHECKING:
    from ernie_kernels.runner.visual_features import Features


@dataclass(frozen=True, slots=True, eq=False)
class MediaPlan:
    """Where the images and videos of a prompt are, before they are encoded.

    Attributes:
        items: in the order of their tokens.
        positions: int64 ``[3, num_prompt_tokens]``: time, row, column.
        position_delta: what makes a later token's number in its sequence its position.
        banks: uint8 ``[num_prompt_tokens]``: 1 where the vision experts are asked.
        rows: int64 ``[num_features]``, ascending: tokens whose embedding is a feature.
    """

    items: list[VisualItem]
    positions: np.ndarray
    position_delta: int
    banks: np.ndarray
    rows: np.ndarray

    def positions_of(self, start: int, stop: int) -> np.ndarray:
        """Of the sequence's tokens ``start .. stop - 1``, generated ones too: int64 ``[3, count]``."""
        in_prompt = self.positions[:, start:stop]
        later = np.arange(start + in_prompt.shape[1], stop)
        later = np.broadcast_to(later + self.position_delta, (3, len(later)))
        return np.concatenate([in_prompt, later], axis=1)

    def banks_of(self, start: int, stop: int) -> np.ndarray:
        """The same for banks, uint8 ``[count]``; generated tokens are text."""
        in_prompt = self.banks[start:stop]
        return np.pad(in_prompt, (0, stop - start - len(in_prompt)))

    def features_of(self, start: int, stop: int) -> slice:
        """Which of all features, and of ``rows``, are those of these tokens."""
        return slice(*np.searchsorted(self.rows, (start, stop)).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class VisualPart:
    """An image, or two frames of a video: its features depend on nothing else.

    Attributes:
        item: of these frames alone.
        key: of the whole item, and which frames of it.
        first: its first feature, among all of the prompt.
    """

    item: VisualItem
    key: bytes
    first: int

    @property
    def stop(self) -> int:
        return self.first + self.item.num_tokens


def parts_of(items: Sequence[VisualItem]) -> Iterator[VisualPart]:
    """All frames in order."""
    first = 0
    for item in items:
        for part, frame in _groups_of(item):
            yield VisualPart(part, item.key + frame.to_bytes(4, "little"), first)
            first += part.num_tokens


def _groups_of(item: VisualItem) -> Iterator[tuple[VisualItem, int]]:
    frames, rows, columns = item.grid_thw
    count = 1 if item.kind == "image" else TEMPORAL_MERGE_SIZE
    size = rows * columns
    for frame in range(0, frames, count):
        pixels, patches = item.pixels, item.patches
        pixels = None if pixels is None else pixels[frame : frame + count]
        patches = None if patches is None else patches[frame * size : (frame + count) * size]
        yield VisualItem(item.kind, (count, rows, columns), pixels, patches, item.key), frame


class PromptMedia:
    """The images and videos of a prompt while it is read. Shared by all answers to it.

    Attributes:
        parts: what is encoded at a time, in the order of their tokens.
        features: of each part, while somebody is about to read it; else None.
    """

    def __init__(self, plan: MediaPlan) -> None:
        self.plan = plan
        self.parts = list(parts_of(plan.items))
        self.features: list[Features | None] = [None] * len(self.parts)
        self._firsts = np.array([part.first for part in self.parts], np.int64)
        # Of each item its first feature; behind the last item their number.
        counts = [item.num_tokens for item in plan.items]
        self._first_of_item = np.cumsum([0, *counts])

    def parts_between(self, start: int, stop: int) -> range:
        """The parts that have features among the tokens ``start .. stop - 1``."""
        wanted = self.plan.features_of(start, stop)
        if wanted.start == wanted.stop:
            return range(0)
        ends = np.searchsorted(self._firsts, (wanted.start, wanted.stop - 1), side="right")
        return range(int(ends[0]) - 1, int(ends[1]))

    def release_before(self, token: int) -> None:
        """Forget the features of parts that end before this token: their keys and values are known.

        A sequence that loses its blocks has them made again, to the same bits.
        """
        done = self.plan.features_of(0, token).stop
        for index, part in enumerate(self.parts):
            if part.stop > done:
                return
            self.features[index] = None

    def name_of(self, start: int, stop: int) -> bytes:
        """What the keys and values of these tokens depend on beside their ids and what is before them.

        Empty where they are as in a prompt of text alone.
        """
        plan = self.plan
        positions, banks = plan.positions_of(start, stop), plan.banks_of(start, stop)
        rows = plan.features_of(start, stop)
        is_text = rows.start == rows.stop and not banks.any()
        if is_text and (positions == np.arange(start, stop)).all():
            return b""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(positions.tobytes())
        digest.update(banks.tobytes())
        digest.update((plan.rows[rows] - start).tobytes())
        # Which feature of which item each of them is.
        index = int(np.searchsorted(self._first_of_item, rows.start, side="right")) - 1
        first = rows.start
        while first < rows.stop:
            begin, end = self._first_of_item[index : index + 2].tolist()
            digest.update(plan.items[index].key)
            digest.update((first - begin).to_bytes(8, "little"))
            first, index = end, index + 1
        return digest.digest()
