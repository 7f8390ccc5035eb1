"""The engine's vision tower on one side, the formulas on the other, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ernie_kernels._core import Tensor
from ernie_kernels.errors import InternalError
from ernie_kernels.models.layers import Linear
from ernie_kernels.verify import media, vision_bounds
from ernie_kernels.verify.bounds import FLOAT32, Expected
from ernie_kernels.verify.expert_trace import as_float64
from ernie_kernels.verify.float64_vision import (
    Float64Vision,
    angles_of,
    frames_of,
    spatially_merged,
    temporally_merged,
)
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.judge import Judge
from ernie_kernels.verify.media import Picture
from ernie_kernels.verify.report import PartResult, StageResult, stage_of, worst_of
from ernie_kernels.verify.stored_vision import (
    BlockWeights,
    LayerNormWeights,
    MergerWeights,
    StoredVision,
)
from ernie_kernels.verify.stored_weights import StoredWeights
from ernie_kernels.verify.twin import Twin
from ernie_kernels.verify.vision_shape import VisionShape
from ernie_kernels.verify.vision_trace import BlockTrace, MergerTrace, ResamplerTrace, VisionTrace
from ernie_kernels.vision.settings import VisionSettings


class VisionComparison:
    """Judges every part of the tower on the engine's own input, and runs the float64 tower along.

    Args:
        judge: of its own bounds, as no part of the tower is quantised.
        settings: of the pixels.

    Attributes:
        features: of the float64 model, and of its twin below them, when all stages have run.
    """

    def __init__(
        self,
        weights: StoredWeights,
        vision: VisionShape,
        trace: VisionTrace,
        judge: Judge,
        settings: VisionSettings,
        pictures: Sequence[Picture],
        twin: Twin,
    ) -> None:
        self.features: Array = np.zeros((0, 0))
        self._stored = StoredVision(weights)
        self._shape = vision
        self._eps = weights.architecture.eps
        self._trace = trace
        self._judge = judge
        self._bounds = judge.bounds
        self._settings = settings
        self._pictures = pictures
        self._angles = angles_of(vision, pictures)
        self._frames = frames_of(pictures)
        self._model = Float64Vision(vision, pictures, self._eps, twin)

    @property
    def num_stages(self) -> int:
        return self._shape.depth + 2

    @property
    def traced_features(self) -> Tensor:
        """The engine's, when all stages have run."""
        if self._trace.features is None:
            raise InternalError("verify: the vision tower has not run")
        return self._trace.features

    def stages(self) -> Iterator[StageResult]:
        yield self._patches()
        for index, trace in enumerate(self._trace.blocks()):
            yield self._block(index, trace)
        yield self._resampler()

    # --------------------------------------------------------------------------- the three stages

    def _patches(self) -> StageResult:
        """Levels of pixels, and the product of patches; the patches are those of the engine's levels."""
        tower = self._trace.encoder.tower
        expected, ours = levels(self._settings), as_float64(tower.levels)
        parts = [self._judge.part("levels of pixels", ours, expected)]
        matrix = self._stored.patch_embed()
        parts += self._judge.weights_of(Linear(tower.patch_embed), {"patch_embed.proj": matrix})
        given = np.concatenate([media.patches(each, ours) for each in self._pictures])
        given = as_float64(self._judge.trace.tensor(given))
        embedded = self._trace.embed()
        parts.append(self._judge.part("patch_embed", embedded, self._bounds.linear(given, matrix)))
        exact = [media.patches(each, expected.value) for each in self._pictures]
        self._model.embed(np.concatenate(exact), matrix)
        return stage_of("patches", embedded, self._model.hidden, parts)

    def _block(self, index: int, trace: BlockTrace) -> StageResult:
        block, w = self._trace.encoder.tower.blocks[index], self._stored.block(index)
        parts: list[PartResult] = []
        if trace.hidden is not None:
            entered = self._bounds.sum(trace.hidden, trace.residual)
            parts.append(self._judge.part("residual", trace.entered, entered))
        parts += self._norm("norm1", block.norm1, w.norm1, trace.entered, trace.normed)
        parts += self._attention(block, w, trace)
        middle = self._bounds.sum(trace.projected, trace.entered)
        parts.append(self._judge.part("residual after attention", trace.middle, middle))
        parts += self._norm("norm2", block.norm2, w.norm2, trace.middle, trace.middle_normed)
        parts += self._judge.activated(
            "mlp.fc1", block.fc1, w.fc1, self._shape.activation, trace.middle_normed,
            trace.activated,
        )  # fmt: skip
        parts += self._judge.linear("mlp.fc2", block.fc2, w.fc2, trace.activated, trace.down)
        self._model.block(w)
        return stage_of(f"block {index}", trace.middle + trace.down, self._model.hidden, parts)

    def _attention(self, block: Any, w: BlockWeights, trace: BlockTrace) -> Iterator[PartResult]:
        width = self._shape.hidden_size
        matrices = {
            f"attn.qkv, {name}": w.qkv.rows(slice(first, first + width))
            for name, first in (("queries", 0), ("keys", width), ("values", 2 * width))
        }
        yield from self._judge.weights_of(block.qkv, matrices)
        for (name, matrix), actual in zip(
            matrices.items(), (trace.query, trace.key, trace.value), strict=True
        ):
            projected = self._bounds.linear(trace.normed, matrix)
            expected = Expected(
                projected.value.reshape(actual.shape), projected.bound.reshape(actual.shape)
            )
            if name.endswith("values"):
                yield self._judge.part(name, actual, expected)
            else:
                turned = vision_bounds.rotated_halves(self._bounds, expected, self._angles)
                yield self._judge.part(f"{name} and 2-D RoPE", actual, turned)
        attended = []
        for rows in self._frames:
            heads = (trace.query[rows], trace.key[rows], trace.value[rows])
            expected = self._bounds.attention(*heads, causal=False)
            attended.append(
                self._judge.part("attention within a frame", trace.attention[rows], expected)
            )
        yield worst_of(attended)
        given = trace.attention.reshape(len(trace.attention), -1)
        yield from self._judge.linear("attn.proj", block.proj, w.proj, given, trace.projected)

    def _resampler(self) -> StageResult:
        """The tower's last norm too."""
        tower, resampler = self._trace.encoder.tower, self._trace.encoder.resampler
        left, residual, entered, normed = self._trace.final()
        norm = self._stored.norm()
        parts = [self._judge.part("residual", entered, self._bounds.sum(left, residual))]
        parts += self._norm("ln", tower.norm, norm, entered, normed)
        self._model.norm(norm)
        trace = self._trace.resample()
        spatial = self._stored.merger("spatial_linear")
        given = spatially_merged(normed)
        parts += self._merger(
            "spatial_linear", resampler.spatial_linear, spatial, given, trace.spatial
        )
        self._model.merge_spatially(spatial)
        del spatial
        temporal = self._stored.merger("temporal_linear")
        given = temporally_merged(trace.spatial.normed, self._pictures)
        parts += self._merger(
            "temporal_linear", resampler.temporal_linear, temporal, given, trace.temporal
        )
        self._model.merge_temporally(temporal)
        del temporal
        parts += self._features(trace)
        exact = self.features[: len(trace.features)]
        return stage_of("resampler", trace.features, exact, parts)

    def _features(self, trace: ResamplerTrace) -> Iterator[PartResult]:
        """Rows of the text model's width."""
        resampler = self._trace.encoder.resampler
        mlp, after_norm = self._stored.projection(), self._stored.after_norm()
        yield from self._judge.linear(
            "mlp", resampler.mlp, mlp, trace.temporal.normed, trace.projected
        )
        yield from self._judge.norm(
            "after_norm", resampler.after_norm, after_norm, self._eps, trace.projected,
            trace.features,
        )  # fmt: skip
        # What prompts are given has the bits of what was looked at here. On a GPU the number of rows
        # decides the order of sums: there only what is put together wrongly is found.
        share = 0.0 if self._trace.features_are_exact else 2.0**-4
        slack = np.full_like(trace.features, share * np.abs(trace.features).max())
        yield self._judge.part("features", self._trace.whole(), Expected(trace.features, slack))
        self.features = self._model.features(mlp, after_norm)

    def _merger(
        self, name: str, layer: Any, w: MergerWeights, given: Array, trace: MergerTrace
    ) -> Iterator[PartResult]:
        side_by_side = Expected(given, np.zeros_like(given))
        yield self._judge.part(f"rows of {name}", trace.given, side_by_side)
        yield from self._judge.activated(
            f"{name}.0", layer.fc1, w.fc1, "gelu", trace.given, trace.activated
        )
        yield from self._judge.linear(f"{name}.2", layer.fc2, w.fc2, trace.activated, trace.linear)
        yield from self._norm(f"{name}.3", layer.norm, w.norm, trace.linear, trace.normed)

    def _norm(
        self, name: str, layer: Any, w: LayerNormWeights, x: Array, actual: Array
    ) -> Iterator[PartResult]:
        return self._judge.layer_norm(name, layer, w.weight, w.bias, self._shape.eps, x, actual)


def levels(settings: VisionSettings) -> Expected:
    """What each level of each channel becomes, ``[3, 256]``; float32 may round every step to it."""
    scaled = settings.rescale_factor * np.arange(256)[None]
    mean, std = (np.array(v)[:, None] for v in (settings.image_mean, settings.image_std))
    value = (scaled - mean) / std
    steps = np.abs(value) + (np.abs(scaled) + np.abs(mean)) / np.abs(std)
    return Expected(value, 4 * FLOAT32 * steps)
