"""The vision half of ERNIE-4.5-VL: images and videos to rows that stand in a prompt's embedding.

x = patch_embed(pixels)                    no bias, no learned position
for each block of the tower:
    x += proj(attention within a frame(rope_2d(qkv(layer_norm(x)))))
    x += fc2(quick_gelu(fc1(layer_norm(x))))
x = layer_norm(x)
s = merge(four patches of a block side by side)
t = merge(two frames side by side; an image beside itself)
features = rms_norm(mlp(t))                merge(v) = layer_norm(fc2(gelu(fc1(v))))
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels._core import Tensor, empty
from ernie_kernels.models.media_positions import Grid
from ernie_kernels.models.resampler import Resampler
from ernie_kernels.models.slices import products_per_slice, slices_of
from ernie_kernels.models.vision_config import SPATIAL_MERGE_SIZE, TEMPORAL_MERGE_SIZE
from ernie_kernels.models.vision_tower import FrameBatch, TowerBuffers, VisionTower

if TYPE_CHECKING:
    from ernie_kernels.models.config import ModelConfig
    from ernie_kernels.models.vision_config import VisionConfig
    from ernie_kernels.models.weights import WeightReader
    from ernie_kernels.vision.item import VisualItem

# Patches that run at the same time, but for a pair of frames that has more: what they take of memory
# is bounded, and weights are read once for many rows.
PATCHES_PER_PIECE = 8192


@dataclass(frozen=True, slots=True)
class FrameGroup:
    """An image, or two frames of a video: what the resampler makes rows of for itself."""

    item: VisualItem
    first_frame: int
    grid: Grid

    @property
    def num_patches(self) -> int:
        t, h, w = self.grid
        return t * h * w

    @property
    def num_tokens(self) -> int:
        _, h, w = self.grid
        return h * w // 4


class VisualEncoder:
    """Vision tower and resampler.

    Args:
        levels: float32 ``[3, 256]``: what each of the 256 levels of each channel of pixels becomes.
        device, dtype: of the features and of what is between.
    """

    def __init__(
        self,
        config: ModelConfig,
        vision: VisionConfig,
        weights: WeightReader,
        levels: np.ndarray,
        *,
        device: str,
        dtype: str,
    ) -> None:
        self.tower = VisionTower(vision, weights, levels, device)
        self.resampler = Resampler(vision, weights)
        self._hidden_size = config.hidden_size
        self._vision = vision
        self._device = device
        self._dtype = dtype

    def slices(self, items: Sequence[VisualItem]) -> Generator[int, None, Tensor]:
        """Gives the products of each slice that is done; whoever leaves off lets go of everything.

        On the CPU an item's features depend neither on the others nor on the slices.

        Returns:
            Features of all items, one after the other: ``[sum of num_tokens, hidden_size]``.
        """
        pieces = list(pieces_of(items))
        num_tokens = sum(group.num_tokens for piece in pieces for group in piece)
        features = empty([num_tokens, self._hidden_size], self._dtype, self._device)
        if not pieces:
            return features
        most = max(sum(group.num_patches for group in piece) for piece in pieces)
        buffers = TowerBuffers.make(self._vision, most, self._dtype, self._device)
        products = products_per_slice(self._device)
        done = 0
        for piece in pieces:
            stop = done + sum(group.num_tokens for group in piece)
            yield from self._piece_slices(piece, buffers, products, out=features[done:stop])
            done = stop
        return features

    def _piece_slices(
        self, piece: list[FrameGroup], buffers: TowerBuffers, products: int, *, out: Tensor
    ) -> Iterator[int]:
        grids = [group.grid for group in piece]
        buffers = buffers.first(sum(group.num_patches for group in piece))
        done = 0
        for group in piece:
            stop = done + group.num_patches
            yield from self._embedding_slices(group, products, buffers.residual[done:stop])
            done = stop
        frames = FrameBatch.of(grids, self._vision, self._device)
        yield from self.tower.slices(frames, buffers, products)
        yield from self.resampler.slices(grids, buffers, products, out=out)

    def _embedding_slices(self, group: FrameGroup, products: int, out: Tensor) -> Iterator[int]:
        """By whole blocks of patches, whose rows follow each other."""
        count, h, w = group.grid
        of_blocks = SPATIAL_MERGE_SIZE * w * self._vision.patch_values * self._vision.hidden_size
        for frame in range(count):
            for blocks in slices_of(h // SPATIAL_MERGE_SIZE, of_blocks, products):
                rows = slice(blocks.start * SPATIAL_MERGE_SIZE, blocks.stop * SPATIAL_MERGE_SIZE)
                begin, end = ((frame * h + row) * w for row in (rows.start, rows.stop))
                self.tower.embed(group.item, group.first_frame + frame, rows, out[begin:end])
                yield (blocks.stop - blocks.start) * of_blocks


def pieces_of(items: Sequence[VisualItem]) -> Iterator[list[FrameGroup]]:
    """All frames in order, in lists of at most ``PATCHES_PER_PIECE`` patches, or of one group."""
    piece: list[FrameGroup] = []
    room = PATCHES_PER_PIECE
    for item in items:
        t, h, w = item.grid_thw
        count = 1 if item.kind == "image" else TEMPORAL_MERGE_SIZE
        for first in range(0, t, count):
            group = FrameGroup(item, first, (count, h, w))
            if piece and group.num_patches > room:
                yield piece
                piece, room = [], PATCHES_PER_PIECE
            piece.append(group)
            room -= group.num_patches
    if piece:
        yield piece
