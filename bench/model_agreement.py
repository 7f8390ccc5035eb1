"""Whether engines run the same model: their logits on the same tokens, and the tokens they chose.

A wrong conversion (a tensor under another's name, the other pairing of ``rope``, a wrong epsilon)
would be timed as well as a right one; here it raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from model_peers import Engine


@dataclass
class Limit:
    """What rounding to a type may cost; see :class:`Agreement`."""

    kl: float
    top1: float
    regret: float


# By the last word of an engine's name; about three times what the random 0.3B weights give. There
# the two largest logits are often closer than a type's rounding, and a wrong model has a KL near 1.
# Errors smaller than the rounding of the 4-bit types show in the types made from the same file.
LIMITS = {
    "float32": Limit(1e-6, 0.99, 0.01),
    "F16": Limit(1e-5, 0.95, 0.01),
    "BF16": Limit(2e-4, 0.85, 0.05),
    "bfloat16": Limit(5e-4, 0.85, 0.05),
    "Q8_0": Limit(3e-3, 0.75, 0.1),
    "wint8": Limit(5e-3, 0.7, 0.1),
    "w8a8": Limit(1e-2, 0.6, 0.15),
    "wint4": Limit(0.4, 0.02, 0.8),
    "wint4-all": Limit(0.4, 0.02, 0.8),
    "Q4_0": Limit(0.4, 0.02, 0.8),
    "Q4_K": Limit(0.4, 0.05, 0.8),
}


@dataclass
class Agreement:
    """Of one engine with the reference.

    Attributes:
        kl: mean over positions of the divergence of its distribution from the reference's, nats.
        top1: share of positions with the same most probable token.
        regret: how far the worst token of the timed greedy answer is from the reference's best, as
            a share of best less mean logit; None before an answer was looked at, then of all so far.
    """

    reference: str
    kl: float
    top1: float
    regret: float | None = None

    def as_json(self) -> dict:
        return {k: round(v, 9) if isinstance(v, float) else v for k, v in asdict(self).items()}


class DisagreementError(Exception):
    """An engine does not compute the model that the others compute."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def agreement(reference: str, expected: np.ndarray, got: np.ndarray) -> Agreement:
    """Compare logits ``[positions, vocab_size]``."""
    divergences = []
    for want, have in zip(expected, got, strict=True):
        p, q = log_softmax(want), log_softmax(have)
        divergences.append(float((np.exp(p) * (p - q)).sum()))
    same = float((expected.argmax(-1) == got.argmax(-1)).mean())
    return Agreement(reference, float(np.mean(divergences)), same)


def regret(logits: np.ndarray, tokens: Sequence[int]) -> float:
    """Of the worst token, from the reference's logits at the positions that chose them."""
    best, mean = logits.max(-1), logits.mean(-1)
    chosen = logits[np.arange(len(tokens)), tokens]
    return float(((best - chosen) / (best - mean)).max())


def check(agreements: Mapping[Engine, Agreement]) -> None:
    """Raises :class:`DisagreementError` for those outside the limits of their engine's type."""
    wrong = []
    for engine, found in agreements.items():
        own, of_reference = (LIMITS[n.split()[-1]] for n in (engine.name, found.reference))
        most_kl, most_regret = own.kl + of_reference.kl, own.regret + of_reference.regret
        # "not <=": a NaN fails.
        if not found.kl <= most_kl or not found.top1 >= own.top1:
            wrong.append(
                f"{engine.name}: KL {found.kl:.2e} (at most {most_kl:.0e}), top-1 "
                f"{found.top1:.1%} (at least {own.top1:.0%}) against {found.reference}"
            )
        if found.regret is not None and not found.regret <= most_regret:
            wrong.append(
                f"{engine.name}: a greedy token lies {found.regret:.2f} (at most {most_regret:.2f}) "
                f"of the range below the best of {found.reference}"
            )
    if wrong:
        raise DisagreementError("\n".join(wrong))


def pick_reference(engines: Sequence[Engine]) -> Engine:
    """transformers in float32 where it runs; otherwise the first of ours."""
    named = {engine.name: engine for engine in engines}
    return named.get("transformers float32", engines[0])


def compare_logits(engines: Sequence[Engine], prompt: Sequence[int]) -> dict[Engine, Agreement]:
    """Logits of every engine on one prompt, with the reference's."""
    reference = pick_reference(engines)
    expected = reference.logits(prompt)
    return {
        engine: agreement(reference.name, expected, engine.logits(prompt)) for engine in engines
    }


def add_regrets(
    agreements: Mapping[Engine, Agreement],
    prompt: Sequence[int],
    answers: Mapping[Engine, Sequence[int]],
) -> None:
    """For the tokens that the timed calls chose, on their own way through the model."""
    reference = pick_reference(list(agreements))
    for engine, tokens in answers.items():
        logits = reference.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        found = agreements[engine]
        found.regret = max(found.regret or 0.0, regret(logits, tokens))
