"""What the vision tower takes: one image or video, cut to whole patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class VisualItem:
    """One image or video, ready for the vision tower.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        grid_thw: frames (even for a video, 1 for an image), patch rows, patch columns; rows and
            columns are even.
        pixels: uint8 ``[t, gh*14, gw*14, 3]``, C-contiguous; None where ``patches`` is given.
        patches: float32 ``[t*gh*gw, 588]``, normalised, in the order of Hugging Face's processor;
            None where ``pixels`` is given.
        key: 16 bytes, a keyed digest of kind, grid, preprocessing and contents: items of equal keys
            have equal features. It means nothing in another process.
    """

    kind: str
    grid_thw: tuple[int, int, int]
    pixels: np.ndarray | None
    patches: np.ndarray | None
    key: bytes

    @property
    def num_tokens(self) -> int:
        """Rows of features that it becomes: t*gh*gw / 4 for an image, / 8 for a video."""
        return math.prod(self.grid_thw) // (4 if self.kind == "image" else 8)
