"""Checks of what stands between pixels and a prompt's embeddings, beside norms and products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ernie_kernels import ops
from ernie_kernels._core import Tensor
from ernie_kernels.doctor.case import Case, Pairs, exactly
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix

# An image and a video of two frames, in blocks of 2 x 2 patches of 3 x 3 pixels.
GRID = np.array([[1, 4, 6], [2, 2, 4]])
PATCH_SIZE = 3


def frame_patches(frame: npt.NDArray[np.uint8], levels: Array) -> Array:
    """The patches of one frame, pixel by pixel."""
    height, width, _ = frame.shape
    patches = []
    for top in range(0, height, 6):
        for left in range(0, width, 6):
            for y, x in ((0, 0), (0, 3), (3, 0), (3, 3)):
                patch = frame[top + y : top + y + 3, left + x : left + x + 3]
                patches.append(np.concatenate([levels[c][patch[..., c]] for c in range(3)]).ravel())
    return np.stack(patches)


def pictures(case: Case) -> tuple[tuple[Tensor, Tensor], Array]:
    """Pixels and levels as the ops take them, and the patches that are expected."""
    frames = [
        case.rng.integers(0, 256, (3 * rows, 3 * columns, 3)).astype(np.uint8)
        for count, rows, columns in GRID
        for _ in range(count)
    ]
    levels = case.random(3, 256)
    pixels = np.concatenate([frame.ravel() for frame in frames])
    given = case.integers(pixels, "uint8"), case.integers(levels, "float32")
    return given, np.concatenate([frame_patches(frame, levels) for frame in frames])


def image_patches(case: Case) -> Pairs:
    (pixels, levels), expected = pictures(case)
    out = case.timed(
        lambda: ops.image_patches(pixels, GRID, levels, dtype=case.dtype, patch_size=PATCH_SIZE)
    )
    yield out, exactly(expected)


def patch_embed(case: Case) -> Pairs:
    ((pixels, levels), patches), weight = pictures(case), case.random(17, 27)
    out = case.timed(
        lambda: ops.patch_embed(
            pixels, case.floats(weight), GRID, levels=levels, patch_size=PATCH_SIZE
        )
    )
    yield out, case.bounds.linear(patches, Matrix(weight, None))


def temporal_merge(case: Case) -> Pairs:
    x = case.random(10, 37)
    out = case.timed(lambda: ops.temporal_merge(case.floats(x), GRID))
    image = np.concatenate([x[:6], x[:6]], axis=1)
    yield out, exactly(np.concatenate([image, np.concatenate([x[6:8], x[8:]], axis=1)]))


def scatter_rows(case: Case) -> Pairs:
    x, before, rows = case.random(4, 37), case.random(7, 37), np.array([6, 0, 3, 2])
    out = case.floats(before)
    case.timed(lambda: ops.scatter_rows(case.floats(x), case.integers(rows, "int32"), out))
    before[rows] = x
    yield out, exactly(before)
