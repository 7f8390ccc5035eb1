"""Patches and features of images and videos."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from op_calls.one_op import Op, zeros


def patches_tensors() -> dict[str, np.ndarray]:
    """An image of 2 x 4 patches and a video of 2 frames of 2 x 2, each of 3 x 3 pixels."""
    return {
        "pixels": np.arange(16 * 27).astype(np.uint8),
        "grid_thw": np.array([[1, 2, 4], [2, 2, 2]]),
        "levels": zeros(3, 256),
    }


OPS = {
    "image_patches": Op(
        ops.image_patches,
        lambda: patches_tensors() | {"out": zeros(16, 27)},
        scalars={"patch_size": 3},
        written=frozenset({"out"}),
        leading={"grid_thw": (0,)},
    ),
    "patch_embed": Op(
        ops.patch_embed,
        lambda: (
            patches_tensors()
            | {"weight": zeros(5, 27), "patches": zeros(7, 27), "out": zeros(16, 5)}
        ),
        scalars={"patch_size": 3},
        written=frozenset({"out", "patches"}),
        leading={"grid_thw": (0,), "weight": (0,), "patches": (0,)},
    ),
    "temporal_merge": Op(
        ops.temporal_merge,
        lambda: {
            "x": zeros(4, 8),
            "grid_thw": np.array([[1, 2, 4], [2, 2, 2]]),
            "out": zeros(3, 16),
        },
        written=frozenset({"out"}),
        leading={"x": (1,), "grid_thw": (0,)},
    ),
    "scatter_rows": Op(
        ops.scatter_rows,
        lambda: {"x": zeros(3, 8), "rows": np.array([4, 0, 2], np.int32), "out": zeros(5, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "out": (0,)},
    ),
}
