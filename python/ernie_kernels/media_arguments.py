"""Images and videos of :meth:`LLM.forward`, as Hugging Face's processor makes them, checked completely."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_kernels.errors import ArgumentError, InputError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.media_positions import (
    IMAGE,
    MEDIA_NAMES,
    TEXT,
    VIDEO,
    banks_of,
    token_positions,
    types_of,
)
from ernie_kernels.models.vision_config import MediaTokens
from ernie_kernels.runner.media import MediaPlan
from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.processor import VisionProcessor

# Of each kind the names of its patches and of its grids.
NAMES = {
    IMAGE: ("pixel_values", "image_grid_thw"),
    VIDEO: ("pixel_values_videos", "video_grid_thw"),
}
TYPES, BANKS = "mm_token_type_ids", "moe_mm_token_type_ids"


@dataclass(frozen=True, slots=True)
class MediaArguments:
    """As they were given; None where they were not."""

    config: ModelConfig
    processor: VisionProcessor
    position_rule: str
    pixel_values: Any = None
    image_grid_thw: Any = None
    pixel_values_videos: Any = None
    video_grid_thw: Any = None
    mm_token_type_ids: Any = None
    moe_mm_token_type_ids: Any = None

    def plans(self, prompts: list[np.ndarray]) -> list[MediaPlan | None]:
        """Where the images and videos of each prompt are; None: it is text alone.

        Args:
            prompts: token ids, int64 ``[num_tokens]`` each.

        Raises:
            TypeError: no arrays, or no list of them.
            ArgumentError: of the wrong shape or dtype, or for a model of text alone.
            InputError: types, placeholders and grids contradict each other, or a value is not finite.
        """
        tokens = self.config.media_tokens
        if tokens is None:
            self._refuse_all()
            return [None] * len(prompts)
        waiting = {kind: deque(self._items(kind)) for kind in NAMES}
        counts = {kind: len(items) for kind, items in waiting.items()}
        types = _per_prompt(TYPES, self.mm_token_type_ids, prompts)
        banks = _per_prompt(BANKS, self.moe_mm_token_type_ids, prompts)
        plans = [
            self._plan(number, ids, tokens, types[number], banks[number], waiting)
            for number, ids in enumerate(prompts)
        ]
        for kind, left in waiting.items():
            if left:
                raise InputError(
                    f"{NAMES[kind][1]}: {counts[kind]} {MEDIA_NAMES[kind]}s were given, "
                    f"{counts[kind] - len(left)} have tokens in the prompts"
                )
        return plans

    def _refuse_all(self) -> None:
        for name in (*NAMES[IMAGE], *NAMES[VIDEO], TYPES, BANKS):
            if getattr(self, name) is not None:
                raise ArgumentError(
                    f"forward: {name}: this model is of text alone; leave it out, or load an "
                    "ERNIE-4.5-VL checkpoint"
                )

    def _items(self, kind: int) -> list[VisualItem]:
        names = NAMES[kind]
        given = [getattr(self, name) for name in names]
        if all(value is None for value in given):
            return []
        for name, other, value in zip(names, names[::-1], given, strict=True):
            if value is None:
                raise ArgumentError(f"forward: {name}: missing beside {other}; give both or none")
        patches, grids = (_array(name, value) for name, value in zip(names, given, strict=True))
        return self.processor.from_patches(MEDIA_NAMES[kind], patches, grids, names=names)

    def _plan(
        self,
        number: int,
        ids: np.ndarray,
        tokens: MediaTokens,
        types: np.ndarray | None,
        banks: np.ndarray | None,
        waiting: dict[int, deque[VisualItem]],
    ) -> MediaPlan | None:
        where = f"{'prompt_token_ids' if types is None else TYPES}[{number}]"
        types = types_of(ids, tokens) if types is None else types
        _check_placeholders(ids, tokens, types, where)
        found = {kind: _items_of(kind, types, waiting[kind], where) for kind in NAMES}
        grids = {kind: [item.grid_thw for _, item in items] for kind, items in found.items()}
        positions, delta = token_positions(
            types, grids[IMAGE], grids[VIDEO], rule=self.position_rule, where=where
        )
        has_media = any(found.values())
        if banks is None:
            # Without media a prompt is text, whatever its ids.
            banks = banks_of(ids, tokens) if has_media else np.zeros(len(ids), np.uint8)
        if not has_media and not banks.any():
            return None
        ordered = sorted((*found[IMAGE], *found[VIDEO]), key=lambda each: each[0])
        return MediaPlan(
            items=[item for _, item in ordered],
            positions=positions,
            position_delta=delta,
            banks=(banks != 0).astype(np.uint8),
            rows=np.flatnonzero(types != TEXT),
        )


def _array(name: str, value: Any) -> np.ndarray:
    """An array of numpy, or of what can be seen as one."""
    try:
        array = np.asarray(value)
    except Exception:  # noqa: BLE001  (whatever the conversion of a foreign type raises)
        array = None
    if array is None or array.dtype == object:
        raise TypeError(f"forward: {name}: expected an array, got {type(value).__name__}")
    return array


def _per_prompt(name: str, given: Any, prompts: list[np.ndarray]) -> list[np.ndarray | None]:
    """An array of integers of each prompt's length; None for each where none were given."""
    if given is None:
        return [None] * len(prompts)
    is_list = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    if not is_list and getattr(given, "ndim", 0) != 2:
        raise TypeError(f"forward: {name}: expected a list, one entry for each prompt")
    if len(given) != len(prompts):
        raise InputError(
            f"{name}: expected an entry for each of {len(prompts)} prompts, got {len(given)}"
        )
    arrays: list[np.ndarray | None] = []
    for number, (each, ids) in enumerate(zip(given, prompts, strict=True)):
        array = _array(f"{name}[{number}]", each)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ArgumentError(
                f"forward: {name}[{number}]: expected integers of one dimension, got {array.dtype} "
                f"of {array.ndim}"
            )
        if len(array) != len(ids):
            raise InputError(
                f"{name}[{number}]: expected one for each of {len(ids)} tokens, got {len(array)}"
            )
        array = array.astype(np.int64)
        wrong = np.flatnonzero((array < TEXT) | (array > VIDEO))
        if wrong.size:
            raise InputError(
                f"{name}[{number}]: position {wrong[0]}: expected 0 (text), 1 (image) or 2 (video), "
                f"got {int(array[wrong[0]])}"
            )
        arrays.append(array)
    return arrays


def _check_placeholders(
    ids: np.ndarray, tokens: MediaTokens, types: np.ndarray, where: str
) -> None:
    """A token is of an image or video where its id says so, and nowhere else."""
    wanted = {TEXT: None, IMAGE: tokens.image, VIDEO: tokens.video}
    for kind, wanted_id in wanted.items():
        of_kind = types == kind
        if wanted_id is None:
            wrong = np.flatnonzero(of_kind & np.isin(ids, list(tokens.placeholders)))
            expected = "no placeholder of an image or video in text"
        else:
            # Baidu's prompts have the placeholder of images for videos too.
            allowed = [wanted_id, tokens.image]
            wrong = np.flatnonzero(of_kind & ~np.isin(ids, allowed))
            expected = f"the {MEDIA_NAMES[kind]} placeholder {wanted_id}"
        if wrong.size:
            raise InputError(
                f"{where}: position {wrong[0]}: expected {expected}, got id {int(ids[wrong[0]])}"
            )


def _items_of(
    kind: int, types: np.ndarray, waiting: deque[VisualItem], where: str
) -> list[tuple[int, VisualItem]]:
    """The next items, as many as a prompt's tokens are of; each with its first token."""
    places = np.flatnonzero(types == kind)
    taken: list[tuple[int, VisualItem]] = []
    done = 0
    while done < len(places):
        if not waiting or done + waiting[0].num_tokens > len(places):
            name = MEDIA_NAMES[kind]
            items = f"{len(taken)} {name}s of {done} tokens"
            after = f"then one of {waiting[0].num_tokens}" if waiting else "and no more"
            raise InputError(
                f"{where}: {len(places)} {name} placeholders; expected as many as its {name}s have "
                f"tokens: {NAMES[kind][1]} gives {items}, {after}"
            )
        item = waiting.popleft()
        taken.append((int(places[done]), item))
        done += item.num_tokens
    return taken
