"""The vision tower: patches of images and frames to rows, each frame for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.errors import InternalError
from ernie_kernels.models.loader import NUMPY_DTYPES
from ernie_kernels.models.media_positions import Grid, frame_bounds, patch_positions
from ernie_kernels.models.vision_weight_specs import BLOCKS, PATCH_EMBED, TOWER_NORM

if TYPE_CHECKING:
    from ernie_kernels.models.vision_config import VisionConfig
    from ernie_kernels.models.weights import WeightReader

# Rows of an MLP at a time: its width is four times that of the rest.
MLP_ROWS = 1024
PATCHES_AT_A_TIME = 4096  # as rows of 588 values, on CUDA


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Which patches stand where, and which of them see each other."""

    table: Tensor  # [num_patches, head_dim] float32, of ops.rope_2d_table
    cu_seqlens: Tensor  # [num_frames + 1] int32
    max_seqlen: int  # patches of the largest frame

    @classmethod
    def of(cls, grids: list[Grid], vision: VisionConfig, device: str) -> FrameBatch:
        positions = from_numpy(patch_positions(grids), device)
        return cls(
            table=ops.rope_2d_table(positions, vision.head_dim, theta=vision.rope_theta),
            cu_seqlens=from_numpy(frame_bounds(grids), device),
            max_seqlen=max(h * w for _, h, w in grids),
        )


@dataclass(frozen=True, slots=True)
class TowerBuffers:
    """Between the ops of a block; shared by all blocks."""

    residual: Tensor  # [num_patches, hidden_size]
    hidden_states: Tensor  # [num_patches, hidden_size]
    qkv: Tensor  # [num_patches, 3 * hidden_size]
    attention: Tensor  # [num_patches, hidden_size]
    mlp: Tensor  # [MLP_ROWS or fewer, intermediate_size]

    @classmethod
    def make(cls, vision: VisionConfig, num_patches: int, dtype: str, device: str) -> TowerBuffers:
        def rows(width: int, count: int = num_patches) -> Tensor:
            return empty([count, width], dtype, device)

        size = vision.hidden_size
        return cls(
            residual=rows(size),
            hidden_states=rows(size),
            qkv=rows(3 * size),
            attention=rows(size),
            mlp=rows(vision.intermediate_size, min(num_patches, MLP_ROWS)),
        )

    def first(self, num_patches: int) -> TowerBuffers:
        """The first rows of all of them."""
        return TowerBuffers(
            residual=self.residual[:num_patches],
            hidden_states=self.hidden_states[:num_patches],
            qkv=self.qkv[:num_patches],
            attention=self.attention[:num_patches],
            mlp=self.mlp,
        )


class VisionBlock:
    """Attention within each frame, and an MLP, each behind a norm and added to what came in."""

    def __init__(self, vision: VisionConfig, weights: WeightReader, name: str) -> None:
        self.norm1 = weights.layer_norm(f"{name}.norm1", vision.layer_norm_eps)
        self.qkv = weights.vision_linear(f"{name}.attn.qkv")
        self.proj = weights.vision_linear(f"{name}.attn.proj")
        self.norm2 = weights.layer_norm(f"{name}.norm2", vision.layer_norm_eps)
        self.fc1 = weights.vision_linear(f"{name}.mlp.fc1", activation=vision.hidden_act)
        self.fc2 = weights.vision_linear(f"{name}.mlp.fc2")
        self.num_heads = vision.num_heads
        self.head_dim = vision.head_dim

    def __call__(
        self, hidden_states: Tensor | None, frames: FrameBatch, buffers: TowerBuffers
    ) -> Tensor:
        """Hidden states, in ``buffers`` as their residual; None before the first block."""
        if hidden_states is None:
            hidden_states = self.norm1(buffers.residual, out=buffers.hidden_states)
        else:
            hidden_states, _ = self.norm1.add(hidden_states, buffers.residual)
        self.attend(self.qkv(hidden_states, out=buffers.qkv), frames, buffers)
        hidden_states = self.proj(buffers.attention, out=hidden_states)
        hidden_states, _ = self.norm2.add(hidden_states, buffers.residual)
        for begin in range(0, len(hidden_states), MLP_ROWS):
            rows = hidden_states[begin : begin + MLP_ROWS]
            self.fc2(self.fc1(rows, out=buffers.mlp[: len(rows)]), out=rows)
        return hidden_states

    def attend(self, qkv: Tensor, frames: FrameBatch, buffers: TowerBuffers) -> None:
        heads = self.num_heads
        by_head = qkv.reshape(len(qkv), 3 * heads, self.head_dim)
        query, key = by_head[:, :heads], by_head[:, heads : 2 * heads]
        ops.rope_2d(query, key, frames.table)
        ops.varlen_attention(
            query,
            key,
            by_head[:, 2 * heads :],
            cu_seqlens=frames.cu_seqlens,
            max_seqlen=frames.max_seqlen,
            out=buffers.attention.reshape(len(qkv), heads, self.head_dim),
        )


class VisionTower:
    """Patches of whole frames to rows of ``hidden_size``."""

    def __init__(
        self, vision: VisionConfig, weights: WeightReader, levels: np.ndarray, device: str
    ) -> None:
        self.patch_embed = weights.vision_matrix(PATCH_EMBED)
        self.blocks = [
            VisionBlock(vision, weights, f"{BLOCKS}.{index}") for index in range(vision.depth)
        ]
        self.norm = weights.layer_norm(TOWER_NORM, vision.layer_norm_eps)
        self.patch_values = vision.patch_values
        self.levels = from_numpy(levels, device)
        self._device = device

    def embed_pixels(self, pixels: np.ndarray, grid: Grid, out: Tensor) -> None:
        """uint8 ``[t, h * 14, w * 14, 3]`` to ``out``, ``[t * h * w, hidden_size]``."""
        ops.patch_embed(
            from_numpy(pixels.reshape(-1), self._device),
            self.patch_embed,
            from_numpy(np.array([grid], np.int64)),
            levels=self.levels,
            patches=self._room(out),
            out=out,
        )

    def _room(self, out: Tensor) -> Tensor | None:
        """For some patches at a time, which CUDA cuts before it multiplies them."""
        if self._device == "cpu":
            return None
        shape = [min(len(out), PATCHES_AT_A_TIME), self.patch_values]
        return empty(shape, out.dtype_name, self._device)

    def embed_patches(self, patches: np.ndarray, out: Tensor) -> None:
        """float32 ``[num_patches, 588]``, rounded to the dtype of ``out``."""
        rows = from_numpy(patches.astype(NUMPY_DTYPES[out.dtype_name], copy=False), self._device)
        ops.linear(rows, self.patch_embed, out=out)

    def __call__(self, frames: FrameBatch, buffers: TowerBuffers) -> Tensor:
        """Rows behind the last norm, from the embedded patches in ``buffers.residual``."""
        hidden_states = None
        for block in self.blocks:
            hidden_states = block(hidden_states, frames, buffers)
        if hidden_states is None:
            raise InternalError("vision tower: no blocks")
        hidden_states, _ = self.norm.add(hidden_states, buffers.residual)
        return hidden_states
