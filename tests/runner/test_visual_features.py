"""Features of images while prompts are read: made once, bounded, named by what they show."""

from __future__ import annotations

import gc
from unittest.mock import Mock

import numpy as np
import pytest
from ernie_kernels._core import from_numpy

from ernie_kernels.models.media_positions import IMAGE, VIDEO, banks_of, token_positions
from ernie_kernels.models.vision_config import MediaTokens
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.media import MediaPlan, PromptMedia, parts_of
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.step_media import StepMedia
from ernie_kernels.runner.visual_features import ENTRY_BYTES, FeatureStore, Reading
from ernie_kernels.vision.item import VisualItem

TOKENS = MediaTokens(90, 91, 92, 93, 94, 95)
WIDTH = 4


def item_of(kind: str, grid: tuple[int, int, int], mark: int = 0) -> VisualItem:
    """Each patch holds the number of its frame, and ``mark``."""
    t, h, w = grid
    patches = np.zeros((t * h * w, 588), np.float32)
    patches[:, 0] = np.repeat(np.arange(t), h * w)
    patches[:, 1] = mark
    return VisualItem(kind, grid, None, patches, bytes([mark]) * 16)


def plan_of(*parts: int | VisualItem, rule: str = "baidu") -> MediaPlan:
    """Of so many tokens of text and of items, as they come."""
    ids, types, items = [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += [5] * part
            types += [0] * part
            continue
        kind = IMAGE if part.kind == "image" else VIDEO
        items.append(part)
        ids += [TOKENS.image if kind == IMAGE else TOKENS.video] * part.num_tokens
        types += [kind] * part.num_tokens
    grids = {kind: [i.grid_thw for i in items if i.kind == kind] for kind in ("image", "video")}
    positions, delta = token_positions(np.array(types), grids["image"], grids["video"], rule=rule)
    return MediaPlan(
        items, positions, delta, banks_of(np.array(ids), TOKENS), np.flatnonzero(types)
    )


class Encoder:
    """A feature says which item it is of, which frame, and which row of the frame.

    A slice for each item.
    """

    def __init__(self) -> None:
        self.calls: list[list[VisualItem]] = []
        self.num_slices = 0

    def __call__(self, items):
        self.calls.append(list(items))
        rows = []
        for item in items:
            count = item.num_tokens
            marks = np.full(count, item.patches[0, 1]), np.full(count, item.patches[0, 0])
            rows.append(np.stack([*marks, np.arange(count), np.ones(count)], axis=1))
            self.num_slices += 1
            yield count
        return from_numpy(np.concatenate(rows).astype(np.float32))


def provide(store: FeatureStore, media: PromptMedia, start: int, stop: int, encode) -> None:
    """All of what a prompt is about to read, at once."""
    readings: list[Reading] = []
    for _ in range(100):
        if store.may_read(Reading(media, start, stop), readings):
            break
        reading = store.next_reading(readings)
        assert reading.media is media
        store.advance(reading, encode)
    assert store.next_reading(readings) is None


PICTURE = item_of("image", (1, 4, 6), 1)  # 6 tokens
OTHER = item_of("image", (1, 2, 4), 2)  # 2 tokens
FILM = item_of("video", (4, 2, 4), 3)  # 2 pairs of frames, 2 tokens each


def test_parts_are_images_and_pairs_of_frames():
    parts = list(parts_of([PICTURE, FILM, OTHER]))
    assert [part.first for part in parts] == [0, 6, 8, 10]
    assert [part.item.grid_thw for part in parts] == [(1, 4, 6), (2, 2, 4), (2, 2, 4), (1, 2, 4)]
    assert parts[2].item.patches[:, 0].tolist() == [2.0] * 8 + [3.0] * 8
    assert len({part.key for part in parts}) == 4
    pixels = np.arange(4 * 28 * 56 * 3, dtype=np.uint8).reshape(4, 28, 56, 3)
    film = VisualItem("video", (4, 2, 4), pixels, None, bytes(16))
    assert np.array_equal(list(parts_of([film]))[1].item.pixels, pixels[2:])


class Span:
    def __init__(self, media, start: int, count: int) -> None:
        self.media, self.start, self.stop = media, start, start + count
        self.token_ids = np.full(count, 5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_every_token_gets_its_feature_whatever_the_chunks(chunk):
    plan = plan_of(3, PICTURE, FILM, 1, OTHER, 2)
    media, store, encode = PromptMedia(plan), FeatureStore(max_bytes=0), Encoder()
    total = len(plan.banks)
    found = np.zeros((total, WIDTH), np.float32)
    for start in range(0, total, chunk):
        count = min(chunk, total - start)
        provide(store, media, start, start + count, encode)
        # Behind three tokens of another sequence.
        step = StepMedia.of(
            [Span(None, 7, 3), Span(media, start, count)],
            np.array([7, 8, 9, *range(start, start + count)]),
        )
        joined = step.joined_features("cpu")
        if len(step.rows):
            found[start + step.rows - 3] = joined.numpy()
        assert step.positions[:3].tolist() == [7, 8, 9]
        assert np.array_equal(step.positions[3:], plan.positions[0, start : start + count])
        media.release_before(start + count)
    expected = np.zeros((total, WIDTH))
    rows = [(1, 0, i, 1) for i in range(6)] + [(3, 2 * f, i, 1) for f in range(2) for i in range(2)]
    expected[plan.rows] = rows + [(2, 0, i, 1) for i in range(2)]
    assert np.array_equal(found, expected)
    # Each once: what is needed again in the next chunk is still there.
    assert sum(map(len, encode.calls)) == 4
    assert media.features == [None] * 4
    gc.collect()
    assert len(store._held) == 0


def test_only_what_a_step_reads_is_encoded():
    media, store, encode = PromptMedia(plan_of(3, PICTURE, FILM, 1)), FeatureStore(), Encoder()
    provide(store, media, 0, 3, encode)
    assert encode.calls == []
    provide(store, media, 3, 10, encode)
    assert [item.kind for item in encode.calls[0]] == ["image", "video"]
    assert encode.calls[0][1].grid_thw == (2, 2, 4)


def test_the_same_picture_is_encoded_once():
    store, encode = FeatureStore(), Encoder()
    for _ in range(2):  # in one prompt, and in another that comes later
        media = PromptMedia(plan_of(PICTURE, 1, PICTURE))
        provide(store, media, 0, 13, encode)
        assert all(features is not None for features in media.features)
    assert store.num_encoded == sum(map(len, encode.calls)) == 1


def test_those_that_somebody_holds_are_found_beyond_the_bound():
    store, encode = FeatureStore(max_bytes=0), Encoder()
    media = [PromptMedia(plan_of(PICTURE)) for _ in range(2)]
    for each in media:
        provide(store, each, 0, 6, encode)
    assert store.num_encoded == 1
    assert media[0].features[0] is media[1].features[0]
    assert store.nbytes == 0


def test_what_is_kept_is_bounded():
    """Row 34 of the failures of others: many keys, flat memory; the most recent ones stay."""
    size = ENTRY_BYTES + 2 * WIDTH * 4
    store, encode = FeatureStore(max_bytes=10 * size), Encoder()
    items = [item_of("image", (1, 2, 4), 0) for _ in range(300)]
    items = [VisualItem(i.kind, i.grid_thw, None, i.patches, n.to_bytes(16, "big")) for n, i in enumerate(items)]  # fmt: skip
    for number, item in enumerate(items):
        provide(store, PromptMedia(plan_of(item)), 0, 2, encode)
        provide(store, PromptMedia(plan_of(items[0])), 0, 2, encode)
        assert store.nbytes <= 10 * size
        assert len(store._recent) == min(number + 1, 10)
    assert store.num_encoded == 300  # the first was never forgotten
    store.clear()
    gc.collect()
    assert store.nbytes == len(store._held) == 0


# ------------------------------------------------------------------------------------------ names


def name(plan: MediaPlan, start: int, stop: int) -> bytes:
    return PromptMedia(plan).name_of(start, stop)


def test_text_before_media_is_named_as_in_text_alone():
    assert name(plan_of(8, PICTURE, 8), 0, 8) == b""
    assert name(plan_of(8, PICTURE, 8), 0, 9) != b""
    assert name(plan_of(8, PICTURE, 8), 14, 22) != b""  # positions are others behind it


def test_equal_contents_have_equal_names():
    again = item_of("image", (1, 4, 6), 1)
    for start, stop in ((0, 9), (8, 16), (10, 11), (20, 30)):
        expected = name(plan_of(8, PICTURE, 8, OTHER, 3), start, stop)
        assert name(plan_of(8, again, 8, OTHER, 3), start, stop) == expected
        # What comes behind does not matter, generated or given.
        if stop <= 22:
            assert name(plan_of(8, again, 8, FILM), start, stop) == expected
    assert name(plan_of(8, PICTURE, 2), 14, 30) == name(plan_of(8, PICTURE, 16), 14, 30)


def test_whatever_differs_is_in_the_name():
    reference = plan_of(4, PICTURE, 2, OTHER, 20)
    names = {
        "itself": name(reference, 0, 20),
        "another picture": name(plan_of(4, item_of("image", (1, 4, 6), 9), 2, OTHER, 20), 0, 20),
        "another second": name(plan_of(4, PICTURE, 2, item_of("image", (1, 2, 4), 9), 20), 0, 20),
        "another shape": name(plan_of(4, item_of("image", (1, 6, 4), 1), 2, OTHER, 20), 0, 20),
        "exchanged": name(plan_of(4, OTHER, 2, PICTURE, 20), 0, 20),
        "a later place": name(plan_of(5, PICTURE, 1, OTHER, 20), 0, 20),
    }
    banks = reference.banks.copy()
    banks[0] = 1
    other = MediaPlan(
        reference.items, reference.positions, reference.position_delta, banks, reference.rows
    )
    names["another bank"] = name(other, 0, 20)
    assert len(set(names.values())) == len(names)
    # Within one picture: which of its features, at the same positions.
    wide = item_of("image", (1, 2, 64), 1)
    plan = plan_of(wide)
    flat = MediaPlan(plan.items, np.zeros_like(plan.positions), 0, plan.banks, plan.rows)
    assert name(flat, 0, 8) != name(flat, 8, 16)


def test_rules_of_positions_differ_behind_a_long_video():
    film = item_of("video", (12, 2, 2), 4)
    first, second = (plan_of(3, film, 9, rule=rule) for rule in ("baidu", "transformers"))
    assert name(first, 0, 9) == name(second, 0, 9)
    assert name(first, 9, 18) != name(second, 9, 18)


@pytest.mark.parametrize("rule", ["baidu", "transformers"])
def test_the_last_token_of_a_prompt_with_media_is_no_decode_step(rule):
    """Alone in a step, as behind a chunk or a prefix hit: a graph has no features, and one bank."""

    class Runner:
        first_vision_id = None
        _decode_steps = Mock()

    plan = plan_of(4, PICTURE, rule=rule)
    media = PromptMedia(plan)
    for start, ids in ((len(plan.banks) - 1, [TOKENS.image]), (3, [5])):
        spans = [TokenSpan(np.array(ids), start, np.zeros(1, np.int32), 1, media)]
        assert ModelRunner.decode(Runner(), spans) is None
    assert Runner._decode_steps.mock_calls == []
