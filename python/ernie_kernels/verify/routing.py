"""Which experts a router chooses, and how they are weighed, in float64; and what float32 may miss.

A choice jumps where two scores are nearly equal, so it is not compared as ids: the scores of the
experts that the engine chose, sorted, must be the highest there are, as far as float32 tells them
apart on the same logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ernie_kernels.verify.bounds import FLOAT32, UNDERFLOW, Expected, summation
from ernie_kernels.verify.formulas import Array

Ids = npt.NDArray[np.int64]


def softmax(logits: Array) -> tuple[Array, Array]:
    """Of each row, and how much float32 may miss it, relative to each element.

    The argument of an exponential is rounded: half a unit of it is that much of the result.
    """
    below = logits - logits.max(-1, keepdims=True)
    p = np.exp(below)
    p /= p.sum(-1, keepdims=True)
    spread = (p * -below).sum(-1, keepdims=True)  # of the sum, by the errors of its terms
    return p, summation(logits.shape[-1]) + 2 * (spread - below) * FLOAT32


def choice(logits: Array, bias: Array, ids: Ids) -> tuple[Array, Expected]:
    """Scores of the chosen experts, and of those that are to be chosen; ``[num_tokens, top_k]``.

    Of a row that names an expert twice, or one that there is not, the scores are NaN.
    """
    p, relative = softmax(logits)
    scores = p + bias
    noise = p * relative + FLOAT32 * np.abs(scores)
    top_k = ids.shape[-1]
    valid = (ids >= 0) & (ids < scores.shape[-1])
    chosen = np.take_along_axis(scores, np.where(valid, ids, 0), -1)
    distinct = [len(set(row)) == top_k for row in ids.tolist()]
    chosen[~valid.all(-1) | ~np.array(distinct, bool)] = np.nan
    highest = -np.sort(-scores, axis=-1)[:, :top_k]
    # Either of two scores may have moved towards the other.
    bound = np.broadcast_to(2 * noise.max(-1, keepdims=True), highest.shape)
    return -np.sort(-chosen, axis=-1), Expected(highest, bound + UNDERFLOW)


def weights(logits: Array, ids: Ids, norm_min: float) -> Expected:
    """Probabilities of the chosen, divided by their sum."""
    p, relative = (np.take_along_axis(each, ids, -1) for each in softmax(logits))
    value = p / np.maximum(p.sum(-1, keepdims=True), norm_min)
    slack = relative + relative.max(-1, keepdims=True) + summation(ids.shape[-1])
    return Expected(value, slack * value + UNDERFLOW)


def combined(outputs: Array, weights_of: Array, shared: Array | None, unit: float) -> Expected:
    """Weighed sum of expert outputs ``[num_tokens, top_k, hidden_size]``, rounded once."""
    terms = weights_of[..., None] * outputs
    value, magnitude = terms.sum(1), np.abs(terms).sum(1)
    if shared is not None:
        value, magnitude = value + shared, magnitude + np.abs(shared)
    bound = unit * np.abs(value) + summation(outputs.shape[1] + 1) * magnitude + UNDERFLOW
    return Expected(value, bound)
