"""The vision tower's and the resampler's tensors in float64, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix, StoredWeights

TOWER = "vision_model"
RESAMPLER = "model.resampler_model"


@dataclass(frozen=True, slots=True)
class LayerNormWeights:
    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One block of the tower; ``qkv`` has the rows of all queries, then keys, then values."""

    norm1: LayerNormWeights
    qkv: Matrix
    proj: Matrix
    norm2: LayerNormWeights
    fc1: Matrix
    fc2: Matrix


@dataclass(frozen=True, slots=True)
class MergerWeights:
    """Two linear layers and a norm, of rows that lie side by side."""

    fc1: Matrix
    fc2: Matrix
    norm: LayerNormWeights


class StoredVision:
    """Read as :class:`.StoredWeights` reads: nothing is kept."""

    def __init__(self, weights: StoredWeights) -> None:
        self._weights = weights

    def patch_embed(self) -> Matrix:
        return self._tower_linear("patch_embed.proj", has_bias=False)

    def block(self, index: int) -> BlockWeights:
        name = f"blocks.{index}"
        return BlockWeights(
            norm1=self._tower_norm(f"{name}.norm1"),
            qkv=self._tower_linear(f"{name}.attn.qkv"),
            proj=self._tower_linear(f"{name}.attn.proj"),
            norm2=self._tower_norm(f"{name}.norm2"),
            fc1=self._tower_linear(f"{name}.mlp.fc1"),
            fc2=self._tower_linear(f"{name}.mlp.fc2"),
        )

    def norm(self) -> LayerNormWeights:
        return self._tower_norm("ln")

    def merger(self, name: str) -> MergerWeights:
        """``"spatial_linear"`` or ``"temporal_linear"``: much the largest, so one at a time."""
        whole = f"{RESAMPLER}.{name}"
        linear = self._weights.plain_linear
        return MergerWeights(linear(f"{whole}.0"), linear(f"{whole}.2"), self._norm(f"{whole}.3"))

    def projection(self) -> Matrix:
        return self._weights.plain_linear(f"{RESAMPLER}.mlp")

    def after_norm(self) -> Array:
        return self._weights.vector(f"{RESAMPLER}.after_norm.weight")

    def _tower_linear(self, name: str, *, has_bias: bool = True) -> Matrix:
        return self._weights.plain_linear(self._tower_name(name), has_bias=has_bias)

    def _tower_norm(self, name: str) -> LayerNormWeights:
        return self._norm(self._tower_name(name))

    def _norm(self, name: str) -> LayerNormWeights:
        vector = self._weights.vector
        return LayerNormWeights(vector(f"{name}.weight"), vector(f"{name}.bias"))

    def _tower_name(self, name: str) -> str:
        """Some files have the tower under ``model.``."""
        whole = f"{TOWER}.{name}"
        return whole if self._weights.has(f"{whole}.weight") else f"model.{whole}"
