"""From logits to tokens, each row with the parameters of its own sequence."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty
from ernie_kernels.runner.sequence import Sequence
from ernie_kernels.runner.transfers import Download, Transfers, Upload

# What ``Sampler`` does: from logits, which it may overwrite, of each row the sequence, and the position
# of its token in it.
SampleFunction = Callable[
    [Tensor, list[Sequence], list[int]], tuple[list[int], list[np.ndarray | None]]
]

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
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
    """Draws tokens below ``vocab_limit``: rows beyond the tokenizer stand for nothing.

    What it needs of the sequences goes to the device in one copy, two where there are penalties; it
    waits once, for the tokens.
    """

    def __init__(self, vocab_limit: int, transfers: Transfers) -> None:
        self.vocab_limit = vocab_limit
        self._transfers = transfers
        self._capacity = 0  # rows that there is room for
        self._asked = Download(transfers, "float32", (0, vocab_limit))

    def __call__(
        self, logits: Tensor, sequences: Rows[Sequence], positions: Rows[int] | None = None
    ) -> tuple[list[int], list[np.ndarray | None]]:
        """One token for each row of ``logits`` (float32 ``[num_rows, vocab_size]``, overwritten).

        Args:
            sequences: of each row; one may have several.
            positions: of each row's token in its sequence; all of ``token_ids`` before it counts.
                None: behind the sequence's last token.

        Returns:
            The tokens, -1 where a row has a NaN or nothing finite; and for sequences that ask for
            log-probabilities those of all tokens below ``vocab_limit``, before penalties and
            temperature.
        """
        count = len(sequences)
        if positions is None:
            positions = [sequence.num_tokens for sequence in sequences]
        if count > self._capacity:
            self._reserve(count)
        asking = [row for row in range(count) if sequences[row].params.logprobs is not None]
        if len(asking) > len(self._asked):
            self._asked = Download(self._transfers, "float32", (len(asking), logits.shape[1]))
        for index, row in enumerate(asking):
            self._asked.queue(logits[row : row + 1], index)
        if any(sequence.params.has_penalties for sequence in sequences):
            self._apply_penalties(logits, sequences, positions)
        params = [sequence.params for sequence in sequences]
        columns = self._columns.arrays()
        columns["temperature"][:count] = [0.0 if p.is_greedy else p.temperature for p in params]
        columns["top_k"][:count] = [p.top_k for p in params]
        columns["top_p"][:count] = [p.top_p for p in params]
        columns["min_p"][:count] = [p.min_p for p in params]
        columns["seed"][:count] = [sequence.seed for sequence in sequences]
        columns["position"][:count] = positions
        self._columns.send()
        ops.sample(
            logits,
            **{name: column[:count] for name, column in self._columns.tensors.items()},
            vocab_limit=self.vocab_limit,
            out=self._tokens[:count],
        )
        self._drawn.queue(self._tokens[:count])
        self._transfers.wait()
        logprobs: list[np.ndarray | None] = [None] * count
        for index, row in enumerate(asking):
            logprobs[row] = log_softmax(self._asked.array[index, : self.vocab_limit])
        return self._drawn.array[:count].tolist(), logprobs

    def _reserve(self, count: int) -> None:
        """Make room for ``count`` rows, and for some more."""
        capacity = 1 << (count - 1).bit_length()
        self._columns = Upload(
            self._transfers,
            {
                "temperature": (np.float32, (capacity,)),
                "top_k": (np.int32, (capacity,)),
                "top_p": (np.float32, (capacity,)),
                "min_p": (np.float32, (capacity,)),
                "seed": (np.int64, (capacity,)),
                "position": (np.int64, (capacity,)),
            },
        )
        self._tokens = empty([capacity], "int64", self._transfers.device)
        self._drawn = Download(self._transfers, "int64", (capacity,))
        self._token_capacity = 0  # of what has as many rows
        self._capacity = capacity

    def _apply_penalties(
        self, logits: Tensor, sequences: Rows[Sequence], positions: Rows[int]
    ) -> None:
        none = np.empty(0, np.int64)
        tokens = [
            sequence.token_ids[:position] if sequence.params.has_penalties else none
            for sequence, position in zip(sequences, positions, strict=True)
        ]
        params = [sequence.params for sequence in sequences]
        lens = [len(each) for each in tokens]
        total, count = sum(lens), len(sequences)
        if total > self._token_capacity:
            self._reserve_tokens(total)
        arrays = self._penalties.arrays()
        arrays["token_ids"][:total] = np.concatenate(tokens)
        arrays["cu_tokens"][: count + 1] = np.cumsum([0, *lens])
        arrays["prompt_lens"][:count] = [
            sequence.num_prompt_tokens if sequence.params.has_penalties else 0
            for sequence in sequences
        ]
        for name in PENALTIES:
            arrays[name][:count] = [getattr(p, name) for p in params]
        self._penalties.send()
        tensors = self._penalties.tensors
        ops.apply_penalties(
            logits,
            tensors["token_ids"][:total],
            tensors["cu_tokens"][: count + 1],
            tensors["prompt_lens"][:count],
            **{name: tensors[name][:count] for name in PENALTIES},
        )

    def _reserve_tokens(self, count: int) -> None:
        """Make room for the tokens of all rows, ``count`` and more, for the penalties."""
        capacity, rows = 1 << (count - 1).bit_length(), self._capacity
        self._penalties = Upload(
            self._transfers,
            {
                "token_ids": (np.int64, (capacity,)),
                "cu_tokens": (np.int32, (rows + 1,)),
                "prompt_lens": (np.int32, (rows,)),
                **{name: (np.float32, (rows,)) for name in PENALTIES},
            },
        )
        self._token_capacity = capacity


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
