"""The vision tower and the resampler in float64, from the pixels' levels to features.

Beside them their twin, as of :mod:`.float64_model`, where the engine computes in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ernie_kernels.verify import formulas, media
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.media import Picture
from ernie_kernels.verify.stored_vision import (
    BlockWeights,
    LayerNormWeights,
    MergerWeights,
)
from ernie_kernels.verify.stored_weights import Matrix
from ernie_kernels.verify.twin import Twin
from ernie_kernels.verify.vision_shape import VisionShape

ACTIVATIONS = {"gelu": formulas.gelu, "quick_gelu": formulas.quick_gelu}


class Float64Vision:
    """The state between the blocks: ``[num_patches, hidden_size]``, twice with a twin.

    Args:
        pictures: one after the other.
        eps: of the norm behind the resampler, which is the text model's.
    """

    def __init__(
        self, shape: VisionShape, pictures: Sequence[Picture], eps: float, twin: Twin
    ) -> None:
        self._shape = shape
        self._pictures = pictures
        self._eps = eps
        self._twin = twin
        every_angle = [angles_of(shape, pictures)] * twin.copies
        self._angles = np.concatenate(every_angle)
        frames = frames_of(pictures)
        num_patches = frames[-1].stop
        self._frames = [
            slice(rows.start + copy * num_patches, rows.stop + copy * num_patches)
            for copy in range(twin.copies)
            for rows in frames
        ]
        self._x: Array = np.zeros((0, shape.hidden_size))

    @property
    def hidden(self) -> Array:
        """The exact model's."""
        return self._twin.exact(self._x)

    def embed(self, patches: Array, matrix: Matrix) -> None:
        self._x = self._twin.linear(self._twin.of(patches), matrix)

    def block(self, w: BlockWeights) -> None:
        x = self._norm(self._x, w.norm1)
        by_head = self._twin.linear(x, w.qkv).reshape(len(x), 3, self._shape.num_heads, -1)
        query, key, value = by_head.swapaxes(0, 1)
        query, key = (
            self._twin.rounded(formulas.rotate_halves(each, self._angles)) for each in (query, key)
        )
        mixed = np.empty_like(query)
        for rows in self._frames:
            p, _ = formulas.probabilities(query[rows], key[rows], causal=False)
            mixed[rows] = formulas.attend(p, value[rows])
        self._add(self._twin.linear(self._twin.rounded(mixed).reshape(len(x), -1), w.proj))
        x = self._norm(self._x, w.norm2)
        self._add(self._twin.linear(self._activated(x, w.fc1, self._shape.activation), w.fc2))

    def norm(self, w: LayerNormWeights) -> None:
        """Behind the last block."""
        self._x = self._norm(self._x, w)

    def merge_spatially(self, w: MergerWeights) -> None:
        self._x = self._merged(spatially_merged(self._x), w)

    def merge_temporally(self, w: MergerWeights) -> None:
        halves = np.split(self._x, self._twin.copies)
        pairs = [temporally_merged(half, self._pictures) for half in halves]
        self._x = self._merged(np.concatenate(pairs), w)

    def features(self, mlp: Matrix, after_norm: Array) -> Array:
        """``[num_tokens, hidden_size of the text]``; the twin's below them."""
        x = self._twin.linear(self._x, mlp)
        return self._twin.rounded(formulas.rms_norm(x, after_norm, self._eps))

    def _merged(self, x: Array, w: MergerWeights) -> Array:
        return self._norm(self._twin.linear(self._activated(x, w.fc1, "gelu"), w.fc2), w.norm)

    def _norm(self, x: Array, w: LayerNormWeights) -> Array:
        return self._twin.rounded(formulas.layer_norm(x, w.weight, w.bias, self._shape.eps))

    def _activated(self, x: Array, matrix: Matrix, name: str) -> Array:
        """The sum is not rounded before the activation."""
        sums = formulas.linear(x, matrix.weight, matrix.bias)
        return self._twin.rounded(ACTIVATIONS[name](sums))

    def _add(self, x: Array) -> None:
        self._x = self._twin.rounded(self._x + x)


def angles_of(shape: VisionShape, pictures: Sequence[Picture]) -> Array:
    places = np.concatenate([media.patch_positions(picture) for picture in pictures])
    return formulas.rope_angles_2d(places, shape.head_dim, shape.theta)


def frames_of(pictures: Sequence[Picture]) -> list[slice]:
    """The patches of each frame: they see each other and nothing else."""
    sizes = [
        rows * columns
        for count, rows, columns in (picture.grid for picture in pictures)
        for _ in range(count)
    ]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def spatially_merged(x: Array) -> Array:
    """Four patches that follow each other are a block, side by side."""
    return x.reshape(len(x) // 4, -1)


def temporally_merged(x: Array, pictures: Sequence[Picture]) -> Array:
    """Each place of two frames side by side; of an image, which has one, that one twice."""
    merged = []
    first = 0
    for picture in pictures:
        count, rows, columns = picture.grid
        size = rows * columns // 4
        frames = [x[first + i * size : first + (i + 1) * size] for i in range(count)]
        first += count * size
        pairs = [(frames[0], frames[0])]
        if picture.kind == "video":
            pairs = list(zip(frames[0::2], frames[1::2], strict=True))
        merged += [np.concatenate(pair, axis=1) for pair in pairs]
    return np.concatenate(merged)
