"""From logits to tokens, each row with the parameters of its own sequence."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.runner.sequence import Sequence

_MASK64 = (1 << 64) - 1


def seed_of_sample(seed: int, index: int) -> int:
    """The seed of a request's answer number ``index``; that of the first is the request's own.

    The finaliser of SplitMix64 spreads neighbouring seeds. Source: Steele, Lea & Flood 2014,
    doi:10.1145/2660193.2660195.
    """
    if index == 0:
        return seed
    z = (seed + index * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


class Sampler:
    """Draws tokens below ``vocab_limit``: rows beyond the tokenizer stand for nothing."""

    def __init__(self, vocab_limit: int, device: str) -> None:
        self.vocab_limit = vocab_limit
        self._device = device

    def __call__(
        self, logits: Tensor, sequences: Rows[Sequence]
    ) -> tuple[list[int], list[np.ndarray | None]]:
        """One token for each row of ``logits`` (float32 ``[num_seqs, vocab_size]``, overwritten).

        Returns:
            The tokens, -1 where a row has a NaN or nothing finite; and for sequences that ask for
            log-probabilities those of all tokens below ``vocab_limit``, before penalties and
            temperature.
        """
        logprobs: list[np.ndarray | None] = [None] * len(sequences)
        for row, sequence in enumerate(sequences):
            if sequence.params.logprobs is not None:
                logprobs[row] = log_softmax(logits[row].numpy()[: self.vocab_limit])
        if any(sequence.params.has_penalties for sequence in sequences):
            self._apply_penalties(logits, sequences)
        params = [sequence.params for sequence in sequences]
        tokens = ops.sample(
            logits,
            temperature=self._column([0.0 if p.is_greedy else p.temperature for p in params]),
            top_k=self._column([p.top_k for p in params], np.int32),
            top_p=self._column([p.top_p for p in params]),
            min_p=self._column([p.min_p for p in params]),
            seed=self._column([sequence.seed for sequence in sequences], np.int64),
            position=self._column([sequence.num_tokens for sequence in sequences], np.int64),
            vocab_limit=self.vocab_limit,
        )
        return tokens.numpy().tolist(), logprobs

    def _apply_penalties(self, logits: Tensor, sequences: Rows[Sequence]) -> None:
        none = np.empty(0, np.int64)
        tokens = [
            sequence.token_ids[: sequence.num_tokens] if sequence.params.has_penalties else none
            for sequence in sequences
        ]
        prompt_lens = [
            sequence.num_prompt_tokens if sequence.params.has_penalties else 0
            for sequence in sequences
        ]
        params = [sequence.params for sequence in sequences]
        ops.apply_penalties(
            logits,
            from_numpy(np.concatenate(tokens), self._device),
            self._column(np.cumsum([0, *map(len, tokens)]), np.int32),
            self._column(prompt_lens, np.int32),
            repetition_penalty=self._column([p.repetition_penalty for p in params]),
            presence_penalty=self._column([p.presence_penalty for p in params]),
            frequency_penalty=self._column([p.frequency_penalty for p in params]),
        )

    def _column(self, values: list | np.ndarray, dtype: type = np.float32) -> Tensor:
        return from_numpy(np.asarray(values, dtype), self._device)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of one row of logits, in float32."""
    with np.errstate(invalid="ignore"):  # a row of NaN ends its request elsewhere
        shifted = logits - logits.max()
        return shifted - np.log(np.exp(shifted).sum(dtype=np.float32))


def most_probable(logprobs: np.ndarray, count: int) -> list[int]:
    """The ``count`` ids of highest log-probability, highest first; of equal ones the lower id."""
    count = min(count, len(logprobs))
    if count == 0:
        return []
    threshold = np.partition(logprobs, len(logprobs) - count)[len(logprobs) - count]
    above = np.flatnonzero(logprobs > threshold)
    equal = np.flatnonzero(logprobs == threshold)[: count - len(above)]
    chosen = np.concatenate([above, equal])
    return chosen[np.lexsort((chosen, -logprobs[chosen]))].tolist()
