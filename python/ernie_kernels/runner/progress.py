"""What a chosen token does to a sequence: its text, and whether the sequence has come to its end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ernie_kernels.errors import NumericError
from ernie_kernels.outputs import Logprob
from ernie_kernels.runner.sampler import most_probable
from ernie_kernels.runner.sequence import FinishReason, Progress, Sequence
from ernie_kernels.tokenizer import Tokenizer


class ProgressMaker:
    """Makes the next item of a sequence's progress. The caller appends it.

    Args:
        eos_token_ids: end a sequence unless its parameters say ``ignore_eos``.
        tokenizer: for the text of the chosen tokens' alternatives, or None.
    """

    def __init__(self, eos_token_ids: Iterable[int], tokenizer: Tokenizer | None) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._tokenizer = tokenizer

    def of_token(self, sequence: Sequence, token: int, logprobs: np.ndarray | None) -> Progress:
        """The next token; below zero if the sampler found none.

        Args:
            logprobs: of all tokens, where the sequence asks for some.
        """
        if token < 0:
            error = NumericError(
                f"request {sequence.request_index}: the logits after token "
                f"{sequence.num_tokens - 1} are not finite: weights or activations overflow; "
                "the request has ended, others are not affected"
            )
            return Progress(None, self._rest(sequence), finish_reason="error", error=error)
        alternatives = None if logprobs is None else self._alternatives(sequence, token, logprobs)
        params, stream = sequence.params, sequence.text_stream
        is_end = token in (params.stop_token_ids or ()) or (
            token in self._eos_token_ids and not params.ignore_eos
        )
        delta = ""
        reason: FinishReason | None = None
        found: int | str | None = None
        if is_end:
            reason, found = "stop", token
        elif stream is not None:
            delta, found = stream.push(token)
        if found is None and sequence.num_output_tokens + 1 == params.max_tokens:
            reason = "length"
        if reason is not None and not isinstance(found, str) and stream is not None:
            rest, in_rest = stream.finish()
            delta += rest
            found = in_rest or found
        if found is not None:
            reason = "stop"
        return Progress(token, None if stream is None else delta, alternatives, reason, found)

    def of_no_experts(self, sequence: Sequence, position: int) -> Progress:
        """The end of a sequence whose token at ``position`` no expert can be chosen for."""
        error = NumericError(
            f"request {sequence.request_index}: the router's logits of token {position} are not "
            "finite: weights or activations overflow; the request has ended, others are not affected"
        )
        return Progress(None, self._rest(sequence), finish_reason="error", error=error)

    def of_abort(self, sequence: Sequence) -> Progress:
        return Progress(None, self._rest(sequence), finish_reason="abort")

    @staticmethod
    def _rest(sequence: Sequence) -> str | None:
        return None if sequence.text_stream is None else sequence.text_stream.finish()[0]

    def _alternatives(
        self, sequence: Sequence, token: int, logprobs: np.ndarray
    ) -> dict[int, Logprob]:
        top = most_probable(logprobs, sequence.params.logprobs or 0)
        # Whoever is above one of these is one of these: only of another token it has to be counted.
        values = -logprobs[top]
        ranks = dict(zip(top, np.searchsorted(values, values).tolist(), strict=True))
        if token not in ranks:
            ranks = {token: int(np.count_nonzero(logprobs > logprobs[token]))} | ranks
        return {
            token_id: Logprob(
                logprob=float(logprobs[token_id]),
                rank=1 + ranks[token_id],
                decoded_token=None
                if self._tokenizer is None
                else self._tokenizer.decode([token_id], skip_special_tokens=False),
            )
            for token_id in dict.fromkeys([token, *top])
        }
