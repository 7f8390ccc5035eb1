"""The engine's own vision tower and resampler, run one part at a time, with all that is in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.errors import InternalError
from ernie_kernels.models.ernie_vl import VisualEncoder
from ernie_kernels.models.resampler import Merger
from ernie_kernels.models.vision_config import VisionConfig
from ernie_kernels.models.vision_tower import FrameBatch, TowerBuffers, VisionBlock
from ernie_kernels.verify.expert_trace import as_float64
from ernie_kernels.verify.formulas import Array
from ernie_kernels.vision.item import VisualItem


@dataclass(slots=True)
class BlockTrace:
    """What one block read and wrote: rows are the patches of all items, end to end."""

    entered: Array  # the sum of what the block before left
    normed: Array
    query: Array  # [patches, heads, head_dim], rotated
    key: Array  # rotated
    value: Array
    attention: Array  # [patches, heads, head_dim]
    projected: Array
    middle: Array
    middle_normed: Array
    activated: Array  # fc1, behind its activation
    down: Array  # fc2
    hidden: Array | None  # what the block before leaves to be added; None before the first
    residual: Array  # to which


@dataclass(slots=True)
class MergerTrace:
    given: Array  # rows side by side
    activated: Array
    linear: Array
    normed: Array


@dataclass(slots=True)
class ResamplerTrace:
    spatial: MergerTrace
    temporal: MergerTrace
    projected: Array
    features: Array


class VisionTrace:
    """Runs a loaded encoder over items in one piece.

    Attributes:
        features: ``[sum of num_tokens, hidden_size of the text]``, when all has run.
    """

    def __init__(
        self,
        encoder: VisualEncoder,
        vision: VisionConfig,
        items: Sequence[VisualItem],
        *,
        device: str,
        dtype: str,
    ) -> None:
        self.encoder = encoder
        self.features: Tensor | None = None
        self._items = items
        self._grids = [item.grid_thw for item in items]
        num_patches = sum(t * h * w for t, h, w in self._grids)
        self._buffers = TowerBuffers.make(vision, num_patches, dtype, device)
        self._frames = FrameBatch.of(self._grids, vision, device)
        self._hidden: Tensor | None = None

    def whole(self) -> Array:
        """The features as the engine makes them, without a look at what is in between."""
        return as_float64(self.encoder(self._items))

    def embed(self) -> Array:
        """Pixels to the tower's first rows."""
        first = 0
        for item, (t, h, w) in zip(self._items, self._grids, strict=True):
            if item.pixels is not None:
                out = self._buffers.residual[first : first + t * h * w]
                self.encoder.tower.embed_pixels(item.pixels, item.grid_thw, out)
            first += t * h * w
        return as_float64(self._buffers.residual)

    def blocks(self) -> Iterator[BlockTrace]:
        """Run the next block; each yields what it did."""
        for block in self.encoder.tower.blocks:
            yield self._run(block)

    def final(self) -> tuple[Array, Array, Array, Array]:
        """What the last block leaves, hidden and residual, their sum, and its norm."""
        hidden, residual = self._left(), as_float64(self._buffers.residual)
        self._hidden, entered = self.encoder.tower.norm.add(
            self._existing_hidden(), self._buffers.residual
        )
        return hidden, residual, as_float64(entered), as_float64(self._hidden)

    def resample(self) -> ResamplerTrace:
        resampler = self.encoder.resampler
        x, spatial = _merge(resampler.spatial_linear, ops.spatial_merge(self._existing_hidden(), 2))
        pairs = ops.temporal_merge(x, from_numpy(np.array(self._grids, np.int64)))
        x, temporal = _merge(resampler.temporal_linear, pairs)
        projected = resampler.mlp(x)
        features = empty(list(projected.shape), projected.dtype_name, projected.device)
        self.features = resampler.after_norm(projected, out=features)
        return ResamplerTrace(spatial, temporal, as_float64(projected), as_float64(features))

    def _run(self, block: VisionBlock) -> BlockTrace:
        """As ``VisionBlock.__call__``."""
        buffers = self._buffers
        hidden, residual = None, as_float64(buffers.residual)
        if self._hidden is None:
            x = block.norm1(buffers.residual, out=buffers.hidden_states)
        else:
            hidden = self._left()
            x, _ = block.norm1.add(self._hidden, buffers.residual)
        entered, normed = as_float64(buffers.residual), as_float64(x)
        block.attend(block.qkv(x, out=buffers.qkv), self._frames, buffers)
        qkv = as_float64(buffers.qkv).reshape(len(normed), 3, block.num_heads, block.head_dim)
        projected = block.proj(buffers.attention)
        given = as_float64(projected)
        x, _ = block.norm2.add(projected, buffers.residual)
        activated = block.fc1(x)
        self._hidden = block.fc2(activated)
        return BlockTrace(
            entered=entered,
            normed=normed,
            query=qkv[:, 0],
            key=qkv[:, 1],
            value=qkv[:, 2],
            attention=as_float64(buffers.attention).reshape(qkv[:, 0].shape),
            projected=given,
            middle=as_float64(buffers.residual),
            middle_normed=as_float64(x),
            activated=as_float64(activated),
            down=as_float64(self._hidden),
            hidden=hidden,
            residual=residual,
        )

    def _existing_hidden(self) -> Tensor:
        if self._hidden is None:
            raise InternalError("verify: no block has run")
        return self._hidden

    def _left(self) -> Array:
        return as_float64(self._existing_hidden())


def _merge(merger: Merger, given: Tensor) -> tuple[Tensor, MergerTrace]:
    activated = merger.fc1(given)
    linear = merger.fc2(activated)
    normed = empty(list(linear.shape), linear.dtype_name, linear.device)
    merger.norm(linear, out=normed)
    return normed, MergerTrace(*map(as_float64, (given, activated, linear, normed)))
