"""Prompts that show images and videos: what stands for them, and what they become.

A chat template, or who makes the token ids, puts a placeholder for each image and video. It is repeated
for each row of features that takes its place; ids that hold as many already stay as they are. Two
conventions are understood:

    transformers    <|IMAGE_PLACEHOLDER|> and <|VIDEO_PLACEHOLDER|>, each an id of its own
    Baidu           <|image@placeholder|> and <|video@placeholder|>, no tokens; both become the id of
                    <|IMAGE_PLACEHOLDER|>, and what they stand for is known beside it

In token ids alone the placeholder of images stands for a video behind ``<|VIDEO_START|>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ernie_kernels.errors import ConfigError, InputError, LimitError
from ernie_kernels.media_sources import (
    TEXT_ALONE,
    MediaBudget,
    MediaSource,
    budgets_of,
    sources_of_prompts,
)
from ernie_kernels.models.media_positions import (
    BAIDU,
    IMAGE,
    MEDIA_NAMES,
    VIDEO,
    banks_of,
    token_positions,
    types_of,
)
from ernie_kernels.models.vision_config import MediaTokens
from ernie_kernels.runner.media import MediaPlan
from ernie_kernels.runner.requests import PlaceMedia, checked_batch
from ernie_kernels.special_tokens import BAIDU_PLACEHOLDERS, Segment
from ernie_kernels.tokenizer import Tokenizer
from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.processor import VisionProcessor

# As the released tokenizers spell them.
SPELLINGS = {
    "<|IMAGE_PLACEHOLDER|>": "image",
    "<|VIDEO_PLACEHOLDER|>": "video",
    "<|IMAGE_START|>": "image_start",
    "<|IMAGE_END|>": "image_end",
    "<|VIDEO_START|>": "video_start",
    "<|VIDEO_END|>": "video_end",
}


def check_media_tokens(tokenizer: Tokenizer, tokens: MediaTokens) -> None:
    """Raises ConfigError where config.json and tokenizer give a token different ids.

    A config without a token for videos says that they have that of images.
    """
    for spelling, name in SPELLINGS.items():
        found, wanted = tokenizer.token_to_id(spelling), getattr(tokens, name)
        is_shared = name == "video" and wanted == tokens.image
        if found not in (None, wanted) and not is_shared:
            raise ConfigError(
                f"config.json: {name}_token_id is {wanted}, and the tokenizer's {spelling} is "
                f"{found}; expected one id, as in files of one checkpoint"
            )


@dataclass(frozen=True, slots=True)
class MediaPrompts:
    """Makes prompts with images and videos for one model; may be used from several threads."""

    tokens: MediaTokens
    processor: VisionProcessor
    max_model_len: int
    position_rule: str = BAIDU

    def types_of_ids(self, ids: np.ndarray) -> np.ndarray:
        """For each id whether it stands for text, an image or a video."""
        tokens = self.tokens
        types = types_of(ids, replace(tokens, video=tokens.image))
        if tokens.video != tokens.image:
            types[ids == tokens.video] = VIDEO
        return types

    def encode(
        self, tokenizer: Tokenizer, segments: Sequence[Segment]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A rendered chat template as token ids, and for each what it stands for.

        Raises:
            ConfigError: it shows media and the tokenizer has no token that stands for them.
        """
        tokens, kinds, spelled = self.tokens, [], []
        last_start = None
        for segment in segments:
            if not segment.special:
                spelled.append(segment)
                continue
            token_id = tokenizer.token_to_id(segment.text)
            kind = BAIDU_PLACEHOLDERS.get(segment.text)
            if token_id in tokens.around:
                last_start = token_id
            elif kind is None and token_id in tokens.placeholders:
                is_video = token_id != tokens.image or last_start == tokens.video_start
                kind = "video" if is_video else "image"
            elif kind is not None:
                token = tokenizer.id_to_token(tokens.image)
                if token not in tokenizer.special_tokens:
                    raise ConfigError(
                        f"tokenizer: no special token has the id {tokens.image}, which stands for "
                        "images"
                    )
                segment = Segment(token, True)
            if kind is not None:
                kinds.append(VIDEO if kind == "video" else IMAGE)
            spelled.append(segment)
        ids = np.array(tokenizer.encode_prompt(spelled), np.int64)
        types = np.zeros(len(ids), np.uint8)
        # Text never encodes to these ids: they are the template's, in its order.
        types[np.isin(ids, list(tokens.placeholders))] = kinds
        return ids, types

    def place(
        self,
        ids: np.ndarray,
        types: np.ndarray,
        sources: Sequence[MediaSource],
        where: str,
        budget: MediaBudget | None = None,
    ) -> tuple[np.ndarray, MediaPlan | None]:
        """Load what is shown, and put it in its place.

        Args:
            ids, types: of a prompt, ``[num_tokens]``.
            sources: of each kind in the order of its placeholders.
            budget: of the request among those of a call; None: it comes alone.

        Returns:
            The ids with each placeholder as often as it has features, and where they are; None: it
            is text alone.

        Raises:
            InputError, LimitError, ...: as the processor; or placeholders and media do not go together,
                which is seen before anything is loaded; or the prompt gets too long.
        """
        given = {kind: [s for s in sources if s.kind == MEDIA_NAMES[kind]] for kind in MEDIA_NAMES}
        limit = self.processor.limits.images_per_request
        if len(sources) > limit:
            raise LimitError(
                f"{where}: {len(sources)} images and videos, the limit is {limit}; send fewer"
            )
        for kind, own in given.items():
            self._check_count(kind, int(np.count_nonzero(types == kind)), own, where)
        if not sources:
            return ids, None
        if budget is None:
            (budget,) = budgets_of([sources], self.processor)
        items: dict[int, list[VisualItem]] = {kind: [] for kind in given}
        room = self.max_model_len - int(np.count_nonzero(types == 0))
        for kind, own in given.items():
            for source in own:
                item = source.load(self.processor, budget)
                items[kind].append(item)
                room -= item.num_tokens
                if room < 0:
                    raise LimitError(
                        f"{source.where}: {item.num_tokens} tokens, with the rest of the prompt more "
                        f"than the model length of {self.max_model_len}; send fewer or smaller "
                        "images, or fewer frames"
                    )
        return self._expand(ids, types, items, where)

    @staticmethod
    def _check_count(kind: int, count: int, own: list[MediaSource], where: str) -> None:
        # More than one each may be those of a prompt that is expanded already.
        if count < len(own) or (count > 0 and not own):
            name = MEDIA_NAMES[kind]
            raise InputError(
                f"{where}: {count} {name} placeholders, {len(own)} {name}s given; expected one for "
                "each, or one for each of its rows of features"
            )

    def _expand(
        self,
        ids: np.ndarray,
        types: np.ndarray,
        items: dict[int, list[VisualItem]],
        where: str,
    ) -> tuple[np.ndarray, MediaPlan]:
        counts = np.ones(len(ids), np.int64)
        for kind, own in items.items():
            places = np.flatnonzero(types == kind)
            sizes = [item.num_tokens for item in own]
            if len(places) == len(own):
                counts[places] = sizes
            elif len(places) != sum(sizes):
                name = MEDIA_NAMES[kind]
                raise InputError(
                    f"{where}: {len(places)} {name} placeholders; expected {len(own)}, one for each "
                    f"{name}, or {sum(sizes)}, one for each of their rows of features"
                )
        ids, types = np.repeat(ids, counts), np.repeat(types, counts)
        grids = {kind: [item.grid_thw for item in own] for kind, own in items.items()}
        positions, delta = token_positions(
            types, grids[IMAGE], grids[VIDEO], rule=self.position_rule, where=where
        )
        return ids, MediaPlan(
            items=in_order_of_tokens(types, items),
            positions=positions,
            position_delta=delta,
            banks=banks_of(ids, self.tokens),
            rows=np.flatnonzero(types),
        )


def place_function(
    media: MediaPrompts | None, prompts: Any, prompt_token_ids: Any, multi_modal_data: Any
) -> PlaceMedia | None:
    """For :func:`.make_requests`; None for a model of text alone.

    Raises:
        InputError: ``multi_modal_data`` for such a model, beside text, or not one for each prompt.
        TypeError: it is something else.
    """
    name = "multi_modal_data"
    if media is None:
        if multi_modal_data is not None:
            raise InputError(f"{name}: {TEXT_ALONE}")
        return None
    if prompts is not None and multi_modal_data is not None:
        raise InputError(
            f"{name}: text has no place for an image; pass prompt_token_ids with a placeholder for "
            "each, or use chat"
        )
    count = (
        0 if prompt_token_ids is None else len(checked_batch(prompt_token_ids, "prompt_token_ids"))
    )
    sources = sources_of_prompts(multi_modal_data, count)
    budgets = budgets_of(sources, media.processor)
    return lambda index, ids, where: media.place(
        ids, media.types_of_ids(ids), sources[index], where, budgets[index]
    )


def in_order_of_tokens(
    types: np.ndarray, items: Mapping[int, Sequence[VisualItem]]
) -> list[VisualItem]:
    """Images and videos together, where each kind is in order and has all its tokens."""
    found = []
    for kind, own in items.items():
        places = np.flatnonzero(types == kind)
        first = 0
        for item in own:
            found.append((int(places[first]), item))
            first += item.num_tokens
    return [item for _, item in sorted(found, key=lambda each: each[0])]
