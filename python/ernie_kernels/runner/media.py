"""What images and videos make of a prompt, and of a step that runs some of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy

if TYPE_CHECKING:
    from ernie_kernels.runner.batch import TokenSpan
    from ernie_kernels.vision.item import VisualItem


@dataclass(frozen=True, slots=True, eq=False)
class MediaPlan:
    """Where the images and videos of a prompt are, before they are encoded.

    Attributes:
        items: in the order of their tokens.
        positions: int64 ``[3, num_prompt_tokens]``: time, row, column.
        position_delta: what makes a later token's number in its sequence its position.
        banks: uint8 ``[num_prompt_tokens]``: 1 where the vision experts are asked.
        rows: int64 ``[num_features]``, ascending: tokens whose embedding is a feature.
    """

    items: list[VisualItem]
    positions: np.ndarray
    position_delta: int
    banks: np.ndarray
    rows: np.ndarray

    @property
    def salt(self) -> bytes:
        """16 bytes that tell the keys and values of this prompt from those of its ids alone."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.positions, self.banks, self.rows):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part).tobytes())
        for item in self.items:
            digest.update(item.key)
        return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class PromptMedia:
    """A plan with its features: ``[num_features, hidden_size]``, on the model's device."""

    plan: MediaPlan
    features: Tensor

    def positions_of(self, start: int, stop: int) -> np.ndarray:
        """Of the sequence's tokens ``start .. stop - 1``, generated ones too: int64 ``[3, count]``."""
        in_prompt = self.plan.positions[:, start:stop]
        later = np.arange(stop - (stop - start - in_prompt.shape[1]), stop)
        later = np.broadcast_to(later + self.plan.position_delta, (3, len(later)))
        return np.concatenate([in_prompt, later], axis=1)

    def banks_of(self, start: int, stop: int) -> np.ndarray:
        """The same for banks, uint8 ``[count]``; generated tokens are text."""
        in_prompt = self.plan.banks[start:stop]
        return np.pad(in_prompt, (0, stop - start - len(in_prompt)))


@dataclass(frozen=True, slots=True)
class StepMedia:
    """Of a whole step, on the host but for the features."""

    positions: np.ndarray  # int64 [num_tokens], of time
    mrope_positions: np.ndarray | None  # int64 [3, num_tokens]; None where the three are equal
    banks: np.ndarray | None  # uint8 [num_tokens]; None where all are text
    rows: np.ndarray  # int32, of the step's tokens that are features
    features: list[Tensor]  # of those rows

    @classmethod
    def of(cls, spans: Sequence[TokenSpan], numbers: np.ndarray) -> StepMedia:
        """``numbers``: each token's in its sequence, int64 ``[num_tokens]``."""
        nothing = np.empty(0, np.int32)
        if all(span.media is None for span in spans):
            return cls(numbers, None, None, nothing, [])
        positions = np.tile(numbers, (3, 1))
        banks = np.zeros(len(numbers), np.uint8)
        rows, features = [nothing], []
        first = 0
        for span in spans:
            last = first + len(span.token_ids)
            if span.media is not None:
                stop = span.start + len(span.token_ids)
                positions[:, first:last] = span.media.positions_of(span.start, stop)
                banks[first:last] = span.media.banks_of(span.start, stop)
                found = np.searchsorted(span.media.plan.rows, (span.start, stop))
                chosen = slice(*found.tolist())
                if found[0] < found[1]:
                    rows.append(
                        (span.media.plan.rows[chosen] + first - span.start).astype(np.int32)
                    )
                    features.append(span.media.features[chosen])
            first = last
        are_equal = bool((positions == positions[0]).all())
        return cls(
            np.ascontiguousarray(positions[0]),
            None if are_equal else positions,
            banks if banks.any() else None,
            np.concatenate(rows),
            features,
        )

    def joined_features(self, device: str) -> Tensor | None:
        """All features one below the other; None where there are none."""
        if len(self.features) < 2:
            return self.features[0] if self.features else None
        first = self.features[0]
        joined = empty([len(self.rows), first.shape[1]], first.dtype_name, device)
        begin = 0
        for each in self.features:
            places = np.arange(begin, begin + len(each), dtype=np.int32)
            ops.scatter_rows(each, from_numpy(places, device), joined)
            begin += len(each)
        return joined
