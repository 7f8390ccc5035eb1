"""Checks of penalties and of sampling."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import from_numpy
from ernie_kernels.doctor.case import Case, Pairs, exactly
from ernie_kernels.verify.bounds import Expected, summation
from ernie_kernels.verify.formulas import Array


def apply_penalties(case: Case) -> Pairs:
    logits = case.random(2, 9) * 3
    tokens = [[1, 4, 4, 2, 4], [8, 0]]
    prompt_lens, penalties = [2, 1], (1.3, 0.5, 0.25)
    penalised = case.floats(logits)
    case.timed(
        lambda: ops.apply_penalties(
            penalised,
            case.integers([*tokens[0], *tokens[1]], "int64"),
            case.integers([0, 5, 7], "int32"),
            case.integers(prompt_lens, "int32"),
            repetition_penalty=penalties[0],
            presence_penalty=penalties[1],
            frequency_penalty=penalties[2],
        )
    )
    repetition, presence, frequency = (float(np.float32(p)) for p in penalties)
    expected = logits.copy()
    for row, (ids, prompt) in enumerate(zip(tokens, prompt_lens, strict=True)):
        for token in set(ids):
            value = expected[row, token]
            value = value / repetition if value > 0 else value * repetition
            count = ids[prompt:].count(token)
            expected[row, token] = value - (frequency * count + presence if count else 0.0)
    yield penalised, Expected(expected, summation(4) * (np.abs(logits) * 2 + 2))


def sample(case: Case) -> Pairs:
    """The token whose share of the filtered probabilities the row's own random number falls in."""
    logits = case.random(6, 50) * 2
    temperatures = np.array([0.0, 0.7, 1.0, 1.3, 1.0, 0.9], np.float32)
    top_k, top_p, min_p = 20, 0.9, 0.02
    seeds, positions = np.arange(6) * 12345 + 7, np.array([0, 1, 5, 1000, 70000, 2**33])
    drawn = case.timed(
        lambda: ops.sample(
            case.floats(logits),
            temperature=from_numpy(temperatures, case.device),
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=case.integers(seeds, "int64"),
            position=case.integers(positions, "int64"),
        )
    )
    expected = [
        _drawn(
            row, float(t), top_k, float(np.float32(top_p)), float(np.float32(min_p)), int(s), int(p)
        )
        for row, t, s, p in zip(logits, temperatures, seeds, positions, strict=True)
    ]
    yield drawn, exactly(np.array(expected, np.float64))


def _drawn(
    logits: Array,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    if temperature == 0:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / temperature)
    kept = np.argsort(-logits, kind="stable")[:top_k]
    reached = np.cumsum(weights[kept]) / weights[kept].sum()
    kept = kept[: 1 + np.searchsorted(reached, top_p)]
    kept = kept[weights[kept] >= min_p * weights.max()]
    shares = np.zeros_like(weights)
    shares[kept] = weights[kept] / weights[kept].sum()
    return int(np.argmax(np.cumsum(shares) > _uniform(seed, position)))


def _uniform(seed: int, position: int) -> float:
    """Philox4x32-10 with the seed as key and the position as counter: 53 bits of [0, 1)."""
    c = [position % 2**32, position >> 32, 0, 0]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, third = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (third >> 32) ^ c[1] ^ key[0],
            third % 2**32,
            (first >> 32) ^ c[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return ((c[1] << 32 | c[0]) >> 11) * 2.0**-53
