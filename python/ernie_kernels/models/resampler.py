"""The resampler: four patches, and two frames of a video, to one row of the text model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.models.media_positions import Grid
from ernie_kernels.models.slices import slices_of
from ernie_kernels.models.vision_config import SPATIAL_MERGE_SIZE, TEMPORAL_MERGE_SIZE
from ernie_kernels.models.vision_weight_specs import AFTER_NORM, PROJECTION, SPATIAL, TEMPORAL

if TYPE_CHECKING:
    from ernie_kernels.models.vision_config import VisionConfig
    from ernie_kernels.models.vision_tower import TowerBuffers
    from ernie_kernels.models.weights import WeightReader


class Merger:
    """``layer_norm(fc2(gelu(fc1(x))))`` of rows that lie side by side."""

    def __init__(self, weights: WeightReader, name: str, eps: float) -> None:
        self.fc1 = weights.vision_linear(f"{name}.0", activation="gelu")
        self.fc2 = weights.vision_linear(f"{name}.2")
        self.norm = weights.layer_norm(f"{name}.3", eps)

    def __call__(self, x: Tensor, *, hidden: Tensor, out: Tensor) -> Tensor:
        """``hidden`` is what ``fc1`` writes to, of the shape of ``out``."""
        out = self.fc2(self.fc1(x, out=hidden), out=out)
        return self.norm(out, out=out)


class Resampler:
    """Merges blocks of 2 x 2 patches, then frames by twos; an image counts as two equal frames."""

    def __init__(self, vision: VisionConfig, weights: WeightReader) -> None:
        self.spatial_linear = Merger(weights, SPATIAL, vision.layer_norm_eps)
        self.temporal_linear = Merger(weights, TEMPORAL, vision.layer_norm_eps)
        self.mlp = weights.vision_linear(PROJECTION)
        self.after_norm = weights.norm(AFTER_NORM)
        self.merged_size = vision.merged_size

    def slices(
        self, grids: list[Grid], buffers: TowerBuffers, products: int, *, out: Tensor
    ) -> Iterator[int]:
        """Rows of the tower in ``buffers.hidden_states`` to ``out``: ``[num_tokens, hidden_size]``
        of the text model. The other buffers, whose contents the tower is done with, are written to."""
        x, hidden, merged = (
            ops.spatial_merge(rows, SPATIAL_MERGE_SIZE)
            for rows in (buffers.hidden_states, buffers.residual, buffers.attention)
        )
        size = self.merged_size
        of_row = 2 * size * size
        for rows in slices_of(len(x), of_row, products):
            self.spatial_linear(x[rows], hidden=hidden[rows], out=merged[rows])
            yield (rows.stop - rows.start) * of_row
        # Twice as wide as a merged row, and of each no more than one: less than queries, keys and values.
        num_values = len(out) * TEMPORAL_MERGE_SIZE * size
        pairs = ops.temporal_merge(
            merged,
            from_numpy(np.array(grids, np.int64)),
            merge_size=SPATIAL_MERGE_SIZE,
            temporal_size=TEMPORAL_MERGE_SIZE,
            out=buffers.qkv.reshape(buffers.qkv.shape[0] * buffers.qkv.shape[1])[
                :num_values
            ].reshape(len(out), TEMPORAL_MERGE_SIZE * size),
        )
        of_row = (TEMPORAL_MERGE_SIZE + 1) * size * size + size * out.shape[1]
        for rows in slices_of(len(out), of_row, products):
            some = self.temporal_linear(pairs[rows], hidden=hidden[rows], out=merged[rows])
            self.after_norm(self.mlp(some, out=out[rows]), out=out[rows])
            yield len(some) * of_row
