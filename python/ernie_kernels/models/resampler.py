"""The resampler: four patches, and two frames of a video, to one row of the text model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.models.media_positions import Grid
from ernie_kernels.models.vision_config import SPATIAL_MERGE_SIZE, TEMPORAL_MERGE_SIZE
from ernie_kernels.models.vision_weight_specs import AFTER_NORM, PROJECTION, SPATIAL, TEMPORAL

if TYPE_CHECKING:
    from ernie_kernels.models.vision_config import VisionConfig
    from ernie_kernels.models.weights import WeightReader


class Merger:
    """``layer_norm(fc2(gelu(fc1(x))))`` of rows that lie side by side."""

    def __init__(self, weights: WeightReader, name: str, eps: float) -> None:
        self.fc1 = weights.vision_linear(f"{name}.0", activation="gelu")
        self.fc2 = weights.vision_linear(f"{name}.2")
        self.norm = weights.layer_norm(f"{name}.3", eps)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.fc2(self.fc1(x))
        return self.norm(x, out=x)


class Resampler:
    """Merges blocks of 2 x 2 patches, then frames by twos; an image counts as two equal frames."""

    def __init__(self, vision: VisionConfig, weights: WeightReader) -> None:
        self.spatial_linear = Merger(weights, SPATIAL, vision.layer_norm_eps)
        self.temporal_linear = Merger(weights, TEMPORAL, vision.layer_norm_eps)
        self.mlp = weights.vision_linear(PROJECTION)
        self.after_norm = weights.norm(AFTER_NORM)

    def __call__(self, x: Tensor, grids: list[Grid], *, out: Tensor) -> Tensor:
        """Rows of the tower, contiguous, to ``out``: ``[num_tokens, hidden_size]`` of the text."""
        x = self.spatial_linear(ops.spatial_merge(x, SPATIAL_MERGE_SIZE))
        x = ops.temporal_merge(
            x,
            from_numpy(np.array(grids, np.int64)),
            merge_size=SPATIAL_MERGE_SIZE,
            temporal_size=TEMPORAL_MERGE_SIZE,
        )
        return self.after_norm(self.mlp(self.temporal_linear(x), out=out), out=out)
