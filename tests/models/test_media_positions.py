"""Positions of tokens and patches: by hand, against transformers, and of types that are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_kernels.errors import InputError
from ernie_kernels.models.media_positions import (
    BAIDU,
    IMAGE,
    POSITION_RULES,
    TEXT,
    TRANSFORMERS,
    VIDEO,
    banks_of,
    frame_bounds,
    merged_grid,
    patch_positions,
    token_positions,
    types_of,
)
from ernie_kernels.models.vision_config import MediaTokens

HUGGINGFACE_IDS = MediaTokens(90, 91, 92, 93, 94, 95)
BAIDU_IDS = MediaTokens(90, 90, 92, 93, 94, 95)


def types(*runs: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(count, kind, np.int64) for kind, count in runs])


# ------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_text_alone_counts(rule):
    positions, delta = token_positions(types((TEXT, 7)), [], [], rule=rule)
    assert np.array_equal(positions, np.tile(np.arange(7), (3, 1)))
    assert (positions.dtype, delta) == (np.int64, 0)


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_an_image_between_text(rule):
    """Two tokens, an image of 4 x 6 patches (2 x 3 tokens), one token."""
    positions, delta = token_positions(
        types((TEXT, 2), (IMAGE, 6), (TEXT, 1)), [(1, 4, 6)], [], rule=rule
    )
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert delta == 6 - 9


def test_a_video_of_many_frames():
    """5 tokens, 40 frames of 4 x 4 patches, 4 tokens: the rules part behind the video."""
    kinds = types((TEXT, 5), (VIDEO, 80), (TEXT, 4))
    for rule, text, generated in ((TRANSFORMERS, 7, 25), (BAIDU, 25, 29)):
        positions, delta = token_positions(kinds, [], [(40, 4, 4)], rule=rule)
        assert positions[0, 5:85].tolist() == [5 + frame for frame in range(20) for _ in range(4)]
        assert positions[1, 5:13].tolist() == [5, 5, 6, 6, 5, 5, 6, 6]
        assert positions[2, 5:13].tolist() == [5, 6, 5, 6, 5, 6, 5, 6]
        assert positions[:, 85:].tolist() == [list(range(text, text + 4))] * 3
        assert len(kinds) + delta == generated


def test_two_images_with_nothing_between_them():
    positions, _ = token_positions(types((IMAGE, 3)), [(1, 2, 4), (1, 2, 2)], [])
    assert positions.tolist() == [[0, 0, 2], [0, 0, 2], [0, 1, 2]]


def test_patches_of_a_frame_come_by_blocks():
    y, x = patch_positions([(1, 4, 4)])
    assert y.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert x.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]


def test_patches_of_several_items():
    grids = [(1, 2, 6), (4, 6, 2), (2, 2, 2)]
    expected = [
        (2 * row + y, 2 * column + x)
        for t, h, w in grids
        for _ in range(t)
        for row in range(h // 2)
        for column in range(w // 2)
        for y in range(2)
        for x in range(2)
    ]
    positions = patch_positions(grids)
    assert (positions.dtype, positions.shape) == (np.int64, (2, 12 + 48 + 8))
    assert positions.T.tolist() == [list(pair) for pair in expected]
    bounds = frame_bounds(grids)
    assert (bounds.dtype, bounds.tolist()) == (np.int32, [0, 12, 24, 36, 48, 60, 64, 68])


def test_of_nothing():
    assert patch_positions([]).shape == (2, 0)
    assert frame_bounds([]).tolist() == [0]


# --------------------------------------------------------------------------------- types and banks


def test_types_and_banks_of_huggingface_ids():
    ids = np.array([7, 92, 90, 90, 93, 94, 91, 95, 90, 8])
    assert types_of(ids, HUGGINGFACE_IDS).tolist() == [0, 0, 1, 1, 0, 0, 2, 0, 1, 0]
    assert banks_of(ids, HUGGINGFACE_IDS).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]


def test_types_and_banks_of_baidu_ids():
    """One placeholder for both: what began last decides."""
    ids = np.array([90, 7, 92, 90, 93, 94, 90, 90, 95, 90, 92, 90, 93, 91])
    assert types_of(ids, BAIDU_IDS).tolist() == [1, 0, 0, 1, 0, 0, 2, 2, 0, 1, 0, 1, 0, 0]
    assert banks_of(ids, BAIDU_IDS).tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]


# --------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("kinds", "images", "videos", "message"),
    [
        ([0, 3, 0], [], [], r"position 1: expected 0 \(text\), 1 \(image\) or 2 \(video\), got 3"),
        ([0, -1], [], [], "position 1: .* got -1"),
        ([0, 1, 1], [], [], "2 tokens of an image from position 1 on, more than the images"),
        ([1] * 5, [(1, 4, 4)], [], "1 tokens of an image from position 4 on"),
        ([1] * 3, [(1, 4, 4)], [], "image 0 has 4 tokens, of a grid of 1 x 4 x 4 patches; .* got 3"),
        ([1, 0, 1, 1], [(1, 2, 2), (1, 2, 6)], [], "image 1 has 3 tokens, .* position 2 on, got 2"),
        ([1], [(1, 2, 2), (1, 2, 2)], [], "1 images have tokens, 2 were given"),
        ([0], [], [(2, 2, 2)], "0 videos have tokens, 1 were given"),
        ([2], [(1, 2, 2)], [], "1 tokens of a video from position 0 on"),
        ([2, 1], [(1, 2, 2)], [(4, 2, 2)], "video 0 has 2 tokens, .* from position 0 on, got 1"),
    ],
)  # fmt: skip
def test_row_39_types_that_do_not_follow_the_grids(kinds, images, videos, message):
    with pytest.raises(InputError, match=message):
        token_positions(np.array(kinds), images, videos)


grid = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
item = st.one_of(
    st.tuples(st.just(TEXT), st.integers(1, 9)),
    st.tuples(st.just(IMAGE), grid.map(lambda g: (1, 2 * g[1], 2 * g[2]))),
    st.tuples(st.just(VIDEO), grid.map(lambda g: (2 * g[0], 2 * g[1], 2 * g[2]))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(item, min_size=1, max_size=8), st.sampled_from(POSITION_RULES))
def test_any_prompt(items, rule):
    """Media in any order: each is where what precedes it ends, and nothing overlaps by Baidu's rule."""
    grids = {IMAGE: [], VIDEO: []}
    runs, blocks = [], []
    for kind, what in items:
        if kind != TEXT:
            grids[kind].append(what)
        shape = (what,) if kind == TEXT else merged_grid(what)
        runs.append((kind, math.prod(shape)))
        blocks.append((kind, shape))
    positions, delta = token_positions(types(*runs), grids[IMAGE], grids[VIDEO], rule=rule)
    start = at = 0
    for kind, shape in blocks:
        stop = start + math.prod(shape)
        block = positions[:, start:stop]
        assert (block.min(axis=1) == at).all()
        size = shape * 3 if kind == TEXT else shape
        assert (block.max(axis=1) == at + np.array(size) - 1).all()
        assert len({tuple(column) for column in block.T.tolist()}) == stop - start
        at += max(shape) if rule == BAIDU or kind == TEXT else max(shape[1:])
        start = stop
    assert len(positions.T) + delta == positions.max() + 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.lists(grid.map(lambda g: (1, 2 * g[1], 2 * g[2])), max_size=3),
    st.lists(grid.map(lambda g: (2 * g[0], 2 * g[1], 2 * g[2])), max_size=3),
)
def test_any_types_give_positions_or_an_input_error(kinds, images, videos):
    message = ""
    try:
        positions, _ = token_positions(np.array(kinds), images, videos)
        assert positions.min() == 0
        assert positions.max() < len(kinds) + sum(sum(g) for g in (*images, *videos))
    except InputError as error:
        message = str(error)
    assert len(message.encode()) <= 512


# --------------------------------------------------------------------------------- transformers


@pytest.mark.oracle
def test_positions_of_transformers(rng):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model_class = transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe.Ernie4_5_VLMoeModel
    with torch.device("meta"):
        model = model_class(transformers.Ernie4_5_VLMoeConfig(
            text_config={"num_hidden_layers": 1, "moe_num_experts": 2, "moe_k": 1},
            vision_config={"depth": 1},
        ))  # fmt: skip
    for _ in range(20):
        runs: list[tuple[int, int]] = []
        grids = {IMAGE: [], VIDEO: []}
        for _ in range(rng.integers(1, 5)):
            kind = int(rng.integers(1, 3))
            t = 1 if kind == IMAGE else 2 * int(rng.integers(1, 12))
            shape = (t, *(2 * int(n) for n in rng.integers(1, 6, 2)))
            grids[kind].append(shape)
            count = math.prod(merged_grid(shape))
            runs += [
                (TEXT, int(rng.integers(1, 6))),
                (kind, count),
                (TEXT, int(rng.integers(1, 6))),
            ]
        kinds = types(*runs)
        expected, expected_delta = model.get_rope_index(
            torch.zeros((1, len(kinds)), dtype=torch.long),
            mm_token_type_ids=torch.from_numpy(kinds)[None],
            image_grid_thw=torch.tensor(grids[IMAGE]) if grids[IMAGE] else None,
            video_grid_thw=torch.tensor(grids[VIDEO]) if grids[VIDEO] else None,
        )
        positions, delta = token_positions(kinds, grids[IMAGE], grids[VIDEO], rule=TRANSFORMERS)
        assert np.array_equal(positions, expected[:, 0].numpy())
        assert delta == int(expected_delta)


@pytest.mark.oracle
def test_patches_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as modeling

    grids = [(1, 4, 6), (6, 8, 2), (1, 2, 2)]
    expected = modeling.get_vision_position_ids(torch.tensor(grids), 2)
    found = patch_positions(grids)
    assert np.array_equal(found, expected.numpy().T)
