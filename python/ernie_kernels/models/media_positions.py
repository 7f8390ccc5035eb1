"""Where tokens and patches stand: of text one after the other, of images and videos in a grid.

A token has a position in time, in rows and in columns; those of text are equal. An image or video
begins where the text before it ends, and what follows it begins behind it, by either of two rules:

    baidu           behind the last of its positions: max(frames, rows, columns) further on
    transformers    behind its rows and columns: max(rows, columns), whatever its frames

They agree unless a video has more frames than rows and columns, all counted after merging.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ernie_kernels.errors import InputError
from ernie_kernels.models.vision_config import SPATIAL_MERGE_SIZE, TEMPORAL_MERGE_SIZE, MediaTokens

BAIDU, TRANSFORMERS = "baidu", "transformers"
POSITION_RULES = (BAIDU, TRANSFORMERS)

# Which experts a token asks: those of vision if it stands for or around media in the prompt, or by its
# id alone, in the prompt and behind it, as Baidu's server has it.
BANKS_BY_ROLE, BANKS_BY_ID = BANK_RULES = "transformers", "fastdeploy"

TEXT, IMAGE, VIDEO = 0, 1, 2
MEDIA_NAMES = {IMAGE: "image", VIDEO: "video"}

# Frames, patch rows and patch columns: t is 1 for an image and even for a video, h and w are even.
Grid = tuple[int, int, int]


def merged_grid(grid: Grid) -> Grid:
    """The tokens of an image or video: frames, rows and columns of them."""
    t, h, w = grid
    frames = t if t == 1 else t // TEMPORAL_MERGE_SIZE
    return frames, h // SPATIAL_MERGE_SIZE, w // SPATIAL_MERGE_SIZE


def token_positions(
    types: np.ndarray,
    images: Sequence[Grid],
    videos: Sequence[Grid],
    *,
    rule: str = BAIDU,
    where: str = "mm_token_type_ids",
) -> tuple[np.ndarray, int]:
    """Positions of a prompt's tokens.

    Args:
        types: ``[num_tokens]`` integers, at least one: ``TEXT``, ``IMAGE`` or ``VIDEO``. Tokens before
            and behind media are text.
        images, videos: grids in the order of their tokens.
        rule: one of ``POSITION_RULES``.
        where: what the types are called, for messages.

    Returns:
        int64 ``[3, num_tokens]``, rows time, row and column; and what is to be added to the number of
        a later token, counted from the beginning of the prompt, for its position.

    Raises:
        InputError: the types are others, or do not follow the grids.
    """
    wrong = np.flatnonzero((types < TEXT) | (types > VIDEO))
    if wrong.size:
        raise InputError(
            f"{where}: position {wrong[0]}: expected 0 (text), 1 (image) or 2 (video), got "
            f"{int(types[wrong[0]])}"
        )
    positions = np.empty((3, len(types)), np.int64)
    waiting = {IMAGE: iter(enumerate(images)), VIDEO: iter(enumerate(videos))}
    position = 0
    for kind, start, stop in _runs(types):
        if kind == TEXT:
            positions[:, start:stop] = np.arange(position, position + stop - start)
            position += stop - start
            continue
        while start < stop:  # two images with nothing between them are one run
            frames, rows, columns = grid = _next_grid(waiting[kind], kind, start, stop, where)
            end = start + frames * rows * columns
            axes = (np.arange(size) + position for size in grid)
            for line, axis in zip(positions, np.ix_(*axes), strict=True):
                line[start:end].reshape(grid)[...] = axis
            position += max(grid) if rule == BAIDU else max(rows, columns)
            start = end
    for kind, rest in waiting.items():
        left = sum(1 for _ in rest)
        if left:
            given = len(images if kind == IMAGE else videos)
            raise InputError(
                f"{where}: {given - left} {MEDIA_NAMES[kind]}s have tokens, {given} were given"
            )
    return positions, int(positions.max()) + 1 - len(types)


def _runs(types: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Type, first and behind the last of each run of equal types."""
    starts = [0, *(np.flatnonzero(types[1:] != types[:-1]) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(types)], strict=True):
        yield int(types[start]), start, stop


def _next_grid(
    waiting: Iterator[tuple[int, Grid]], kind: int, start: int, stop: int, where: str
) -> Grid:
    """The tokens of the next image or video, of which ``start`` is the first."""
    index, grid = next(waiting, (-1, None))
    name = MEDIA_NAMES[kind]
    if grid is None:
        raise InputError(
            f"{where}: {stop - start} tokens of {'an' if kind == IMAGE else 'a'} {name} from position "
            f"{start} on, more than the {name}s that were given have"
        )
    frames, rows, columns = merged = merged_grid(grid)
    if start + frames * rows * columns > stop:
        raise InputError(
            f"{where}: {name} {index} has {frames * rows * columns} tokens, of a grid of "
            f"{' x '.join(map(str, grid))} patches; expected as many from position {start} on, got "
            f"{stop - start}"
        )
    return merged


def types_of(token_ids: np.ndarray, tokens: MediaTokens) -> np.ndarray:
    """``TEXT``, ``IMAGE`` or ``VIDEO`` for each id: uint8 ``[num_tokens]``.

    Where images and videos have one placeholder it is a video's behind the token that begins one.
    """
    types = np.where(token_ids == tokens.image, IMAGE, TEXT).astype(np.uint8)
    if tokens.video != tokens.image:
        types[token_ids == tokens.video] = VIDEO
        return types
    marks = np.isin(token_ids, list(tokens.around))
    last = np.maximum.accumulate(np.where(marks, np.arange(len(token_ids)), -1))
    begins_video = (last >= 0) & (token_ids[last] == tokens.video_start)
    types[begins_video & (types == IMAGE)] = VIDEO
    return types


def banks_of(token_ids: np.ndarray, tokens: MediaTokens) -> np.ndarray:
    """1 where a prompt's token goes to the vision experts: uint8 ``[num_tokens]``.

    Placeholders do, and the tokens before and behind media.
    """
    return np.isin(token_ids, list(tokens.placeholders | tokens.around)).astype(np.uint8)


def patch_positions(grids: Iterable[Grid]) -> np.ndarray:
    """Rows and columns of all patches: int64 ``[2, num_patches]``.

    In the order in which a tower has them: frame after frame, blocks of 2 x 2 patches row by row, and
    a block's patches row by row.
    """
    side = SPATIAL_MERGE_SIZE
    parts = [np.empty((2, 0), np.int64)]
    for t, h, w in grids:
        frame = np.empty((2, h // side, w // side, side, side), np.int64)
        frame[0] = np.arange(h).reshape(-1, 1, side, 1)
        frame[1] = np.arange(w).reshape(1, -1, 1, side)
        parts.append(np.tile(frame.reshape(2, -1), t))
    return np.concatenate(parts, axis=1)


def frame_bounds(grids: Iterable[Grid]) -> np.ndarray:
    """Where each frame's patches begin, and behind the last: int32 ``[num_frames + 1]``."""
    sizes = [np.full(t, h * w, np.int64) for t, h, w in grids]
    bounds = np.cumsum(np.concatenate([np.zeros(1, np.int64), *sizes]))
    return bounds.astype(np.int32)
