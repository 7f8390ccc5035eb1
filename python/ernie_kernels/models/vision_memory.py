"""What images and videos take of memory while prompts with them are read, beside the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_kernels.models.ernie_vl import PATCHES_PER_PIECE
from ernie_kernels.models.vision_config import (
    PATCH_SIZE,
    SPATIAL_MERGE_SIZE,
    TEMPORAL_MERGE_SIZE,
    VisionConfig,
)
from ernie_kernels.models.vision_tower import MLP_ROWS, PATCHES_AT_A_TIME

if TYPE_CHECKING:
    from ernie_kernels.vision.settings import VisionSettings

# Of features that are kept for later; and of those that prompts hold, beyond which only the first of
# them gets more. In bfloat16 with 2560 values a row, 13,000 rows: forty pictures of 512 x 512.
MAX_FEATURE_BYTES = 64 << 20


def most_patches(settings: VisionSettings) -> int:
    """That go through the tower at the same time: those of the largest image, of two frames of a video,
    or of several that are small."""
    image = settings.image_max_pixels // PATCH_SIZE**2
    frames = TEMPORAL_MERGE_SIZE * (settings.video_max_pixels // PATCH_SIZE**2)
    return max(image, frames, PATCHES_PER_PIECE)


def visual_nbytes(
    vision: VisionConfig, hidden_size: int, itemsize: int, device: str, num_patches: int
) -> int:
    """Bytes on the device for ``num_patches`` at the same time: activations of tower and resampler,
    their features, and those that are kept and held. ``hidden_size``: of the text model.
    """
    num_tokens = num_patches // SPATIAL_MERGE_SIZE**2
    features = num_tokens * hidden_size * itemsize
    # While they are made, each in memory of its own, and those that go beyond what may be held.
    return (
        tower_nbytes(vision, itemsize, num_patches)
        + pixels_nbytes(vision, itemsize, device, num_patches)
        + 3 * features
        + 2 * MAX_FEATURE_BYTES
    )


def tower_nbytes(vision: VisionConfig, itemsize: int, num_patches: int) -> int:
    """Of :class:`.TowerBuffers` and :class:`.FrameBatch`."""
    row = 6 * vision.hidden_size  # residual, hidden states, attention; queries, keys, values
    mlp = min(num_patches, MLP_ROWS) * vision.intermediate_size
    table, positions = 4 * vision.head_dim, 2 * 8
    return (num_patches * row + mlp) * itemsize + num_patches * (table + positions)


def pixels_nbytes(vision: VisionConfig, itemsize: int, device: str, num_patches: int) -> int:
    """Of an image on its way in; CUDA cuts patches before it multiplies them."""
    rows = 0 if device == "cpu" else min(num_patches, PATCHES_AT_A_TIME)
    return (num_patches + rows * itemsize) * vision.patch_values
