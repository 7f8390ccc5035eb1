"""What the images and videos of several prompts make of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_kernels._core import Tensor, empty, queue_copy
from ernie_kernels.errors import InternalError

if TYPE_CHECKING:
    from ernie_kernels.runner.batch import TokenSpan
    from ernie_kernels.runner.media import PromptMedia


@dataclass(frozen=True, slots=True)
class StepMedia:
    """Of a whole step, on the host but for the features."""

    positions: np.ndarray  # int64 [num_tokens], of time
    mrope_positions: np.ndarray | None  # int64 [3, num_tokens]; None where the three are equal
    banks: np.ndarray | None  # uint8 [num_tokens]; None where all are text
    rows: np.ndarray  # int32, of the step's tokens that are features
    features: list[Tensor]  # of those rows

    @classmethod
    def of(
        cls, spans: Sequence[TokenSpan], numbers: np.ndarray, first_vision_id: int | None = None
    ) -> StepMedia:
        """Args:
        numbers: each token's in its sequence, int64 ``[num_tokens]``.
        first_vision_id: ids from this one on ask the vision experts, wherever they stand.
        """
        rows = [np.empty(0, np.int32)]
        features: list[Tensor] = []
        if all(span.media is None for span in spans):
            banks = _banks_by_id(spans, first_vision_id)
            return cls(numbers, None, banks, rows[0], features)
        positions = np.tile(numbers, (3, 1))
        banks = np.zeros(len(numbers), np.uint8)
        first = 0
        for span in spans:
            last = first + len(span.token_ids)
            if span.media is not None:
                plan = span.media.plan
                positions[:, first:last] = plan.positions_of(span.start, span.stop)
                banks[first:last] = plan.banks_of(span.start, span.stop)
                chosen = plan.rows[plan.features_of(span.start, span.stop)]
                rows.append((chosen + (first - span.start)).astype(np.int32))
                features += _features_of(span.media, span.start, span.stop)
            first = last
        by_id = _banks_by_id(spans, first_vision_id)
        if by_id is not None:
            banks |= by_id
        return cls(
            np.ascontiguousarray(positions[0]),
            None if (positions == positions[0]).all() else positions,
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
            queue_copy(joined[begin : begin + len(each)], each)
            begin += len(each)
        return joined


def _banks_by_id(spans: Sequence[TokenSpan], first_vision_id: int | None) -> np.ndarray | None:
    if first_vision_id is None:
        return None
    banks = np.concatenate([span.token_ids for span in spans]) >= first_vision_id
    return banks.astype(np.uint8) if banks.any() else None


def _features_of(media: PromptMedia, start: int, stop: int) -> list[Tensor]:
    """Those of the sequence's tokens ``start .. stop - 1``, in order."""
    wanted = media.plan.features_of(start, stop)
    found = []
    for index in media.parts_between(start, stop):
        part, features = media.parts[index], media.features[index]
        if features is None:
            raise InternalError("media: a step reads an image that is not encoded")
        begin = max(wanted.start, part.first) - part.first
        end = min(wanted.stop, part.stop) - part.first
        found.append(features.rows[begin:end])
    return found
