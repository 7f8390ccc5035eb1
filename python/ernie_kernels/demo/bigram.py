"""The baseline that the demo model has to beat: a bigram model with interpolated Kneser-Ney."""

from __future__ import annotations

import numpy as np

# Multiples of the closed-form discounts that are tried on the tuning text.
DISCOUNT_SCALES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6)


class Bigram:
    """p(w | v) = max(c(v, w) - D(c), 0) / c(v) + g(v) * p_continuation(w).

    D has three values, for counts of 1, 2 and more (Chen & Goodman 1998, section 3, "modified
    Kneser-Ney"); p_continuation is proportional to the number of distinct left neighbours of w,
    plus one half so that no token is impossible.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        pairs = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
        self.counts = np.bincount(pairs, minlength=vocab_size**2).reshape(vocab_size, vocab_size)
        self.totals = self.counts.sum(axis=1)
        neighbours = (self.counts > 0).sum(axis=0) + 0.5
        self.continuation = neighbours / neighbours.sum()
        once, twice, thrice, often = (int((self.counts == n).sum()) for n in (1, 2, 3, 4))
        ratio = once / (once + 2 * twice)
        self.discounts = np.array(
            [
                0.0,
                1 - 2 * ratio * twice / once,
                2 - 3 * ratio * thrice / twice,
                3 - 4 * ratio * often / thrice,
            ]
        )

    def losses(self, tokens: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """-log p(tokens[i + 1] | tokens[i]) in nats, for every i, discounts times ``scale``."""
        # A discount above the count would take more than there is.
        discounts = np.minimum(self.discounts * scale, [0.0, 1.0, 2.0, 3.0])
        freed = discounts[np.minimum(self.counts, 3)].sum(axis=1)
        left, right = tokens[:-1], tokens[1:]
        count, total = self.counts[left, right], self.totals[left]
        kept = count - discounts[np.minimum(count, 3)]
        unseen = total == 0
        total = np.maximum(total, 1)
        back_off = np.where(unseen, 1.0, freed[left] / total)
        return -np.log(kept / total + back_off * self.continuation[right])

    def best_scale(self, tuning: list[np.ndarray]) -> float:
        """The scale of the discounts with the least loss on ``tuning``."""
        return min(
            DISCOUNT_SCALES,
            key=lambda scale: sum(self.losses(tokens, scale).sum() for tokens in tuning),
        )
