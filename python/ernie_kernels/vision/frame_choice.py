"""Which frames of a video the model sees."""

from __future__ import annotations

import math

import numpy as np

FRAME_RULES = ("baidu", "transformers")


def chosen_frames(
    num_frames: int,
    rate: float,
    *,
    rule: str = "baidu",
    fps: float | None = 2.0,
    min_frames: int = 16,
    max_frames: int = 180,
) -> np.ndarray:
    """Indices of the frames that are kept, ascending int64, each below ``num_frames``.

    ``"baidu"``: the frames nearest to every ``1 / fps`` seconds (half to even); if they are fewer
    than ``min_frames`` or more than ``max_frames``, that many spread from the first on.
    ``"transformers"``: every ``num_frames / k``-th, rounded down, where k = duration * fps, kept
    between the two limits and never above ``num_frames``.

    Args:
        num_frames: of the whole video, >= 1.
        rate: its frames per second, > 0.
        fps: frames per second to keep; None: all of them, inside the limits.

    Source: FastDeploy's ERNIE-4.5-VL processor; transformers 5.23, Ernie4_5_VLMoeVideoProcessor.
    """
    wanted = num_frames if fps is None else num_frames / rate * fps
    if rule == "transformers":
        return _every_step(num_frames, min(max(wanted, min_frames), max_frames, num_frames))
    if wanted > max_frames + 2:  # not to make a list of what is too long anyway
        return _spread(num_frames, max_frames)
    if fps is None:
        indices = np.arange(num_frames)
    else:
        seconds = np.arange(0, num_frames / rate, 1 / fps)
        indices = np.rint(seconds * rate).astype(np.int64)
        indices = indices[indices < num_frames]
    if not min_frames <= len(indices) <= max_frames:
        limit = min_frames if len(indices) < min_frames else max_frames
        return _spread(num_frames, limit)
    return indices


def _spread(num_frames: int, limit: int) -> np.ndarray:
    count = min(limit, num_frames)
    return np.linspace(0, num_frames, count + 1).astype(np.int64)[:-1]


def _every_step(num_frames: int, count: float) -> np.ndarray:
    step = num_frames / count
    # In float32, as the reference has it: near an integer the rounding decides.
    places = (np.arange(math.ceil(num_frames / step)) * step).astype(np.float32)
    # The reference's list at times ends with num_frames itself, a frame that is not there.
    return places[places < num_frames].astype(np.int64)
