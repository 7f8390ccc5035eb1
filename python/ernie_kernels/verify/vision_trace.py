"""The engine's own vision tower and resampler, run one part at a time, with all that is in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.errors import InternalError
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.ernie_vl import VisualEncoder
from ernie_kernels.models.resampler import Merger
from ernie_kernels.models.vision_config import VisionConfig
from ernie_kernels.models.vision_tower import FrameBatch, VisionBlock
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
    """Runs a loaded model's encoder over items in one piece, layer by layer.

    How the engine itself puts the layers together is held against this as a whole: :meth:`whole`.

    Attributes:
        features: ``[sum of num_tokens, hidden_size of the text]``, when all has run.
    """

    def __init__(
        self,
        model: ErnieForCausalLM,
        encoder: VisualEncoder,
        vision: VisionConfig,
        items: Sequence[VisualItem],
        *,
        device: str,
        dtype: str,
    ) -> None:
        self.encoder = encoder
        self.features: Tensor | None = None
        self._model = model
        self._items = items
        self._device = device
        self._dtype = dtype
        self._grids = [item.grid_thw for item in items]
        self._frames = FrameBatch.of(self._grids, vision, device)
        self._residual = empty([0, vision.hidden_size], dtype, device)
        self._hidden: Tensor | None = None

    @property
    def features_are_exact(self) -> bool:
        """Whether :meth:`whole` has the bits of :attr:`features`."""
        return self._device == "cpu"

    def whole(self) -> Array:
        """The features as prompts are given them."""
        return as_float64(self._model.visual_features(self._items))

    def embed(self) -> Array:
        """Pixels to the tower's first rows."""
        pixels = [item.pixels.reshape(-1) for item in self._items if item.pixels is not None]
        tower = self.encoder.tower
        self._residual = ops.patch_embed(
            from_numpy(np.concatenate(pixels), self._device),
            tower.patch_embed,
            np.array(self._grids, np.int64),
            levels=tower.levels,
            dtype=self._dtype,
        )
        return as_float64(self._residual)

    def blocks(self) -> Iterator[BlockTrace]:
        """Run the next block; each yields what it did."""
        for block in self.encoder.tower.blocks:
            yield self._run(block)

    def final(self) -> tuple[Array, Array, Array, Array]:
        """What the last block leaves, hidden and residual, their sum, and its norm."""
        left = as_float64(self._existing_hidden()), as_float64(self._residual)
        self._hidden, entered = self.encoder.tower.norm.add(self._existing_hidden(), self._residual)
        return *left, as_float64(entered), as_float64(self._hidden)

    def resample(self) -> ResamplerTrace:
        resampler = self.encoder.resampler
        x, spatial = _merge(resampler.spatial_linear, ops.spatial_merge(self._existing_hidden(), 2))
        pairs = ops.temporal_merge(x, np.array(self._grids, np.int64))
        x, temporal = _merge(resampler.temporal_linear, pairs)
        projected = resampler.mlp(x)
        features = _like(projected)
        self.features = resampler.after_norm(projected, out=features)
        return ResamplerTrace(spatial, temporal, as_float64(projected), as_float64(features))

    def _run(self, block: VisionBlock) -> BlockTrace:
        hidden, residual = None, as_float64(self._residual)
        if self._hidden is None:
            x = block.norm1(self._residual, out=_like(self._residual))
        else:
            hidden = as_float64(self._hidden)
            x, _ = block.norm1.add(self._hidden, self._residual)
        entered, normed = as_float64(self._residual), as_float64(x)
        by_head, mixed = self._attend(block, block.qkv(x))
        query, key, value = np.split(as_float64(by_head), 3, axis=1)
        projected = block.proj(mixed.reshape(len(x), x.shape[1]))
        given = as_float64(projected)
        x, _ = block.norm2.add(projected, self._residual)
        activated = block.fc1(x)
        self._hidden = block.fc2(activated)
        return BlockTrace(
            entered=entered,
            normed=normed,
            query=query,
            key=key,
            value=value,
            attention=as_float64(mixed),
            projected=given,
            middle=as_float64(self._residual),
            middle_normed=as_float64(x),
            activated=as_float64(activated),
            down=as_float64(self._hidden),
            hidden=hidden,
            residual=residual,
        )

    def _attend(self, block: VisionBlock, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """The heads of turned queries, of turned keys and of values, and what attention makes of them."""
        heads = block.num_heads
        by_head = qkv.reshape(len(qkv), 3 * heads, block.head_dim)
        query, key = by_head[:, :heads], by_head[:, heads : 2 * heads]
        value = by_head[:, 2 * heads :]
        ops.rope_2d(query, key, self._frames.table)
        mixed = empty([len(qkv), heads, block.head_dim], qkv.dtype_name, self._device)
        ops.varlen_attention(
            query,
            key,
            value,
            cu_seqlens=self._frames.cu_seqlens,
            max_seqlen=self._frames.max_seqlen,
            out=mixed,
        )
        return by_head, mixed

    def _existing_hidden(self) -> Tensor:
        if self._hidden is None:
            raise InternalError("verify: no block has run")
        return self._hidden


def _like(tensor: Tensor) -> Tensor:
    return empty(list(tensor.shape), tensor.dtype_name, tensor.device)


def _merge(merger: Merger, given: Tensor) -> tuple[Tensor, MergerTrace]:
    activated = merger.fc1(given)
    linear = merger.fc2(activated)
    normed = merger.norm(linear, out=_like(linear))
    return normed, MergerTrace(*map(as_float64, (given, activated, linear, normed)))
