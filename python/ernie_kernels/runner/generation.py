"""The loop of generation: schedule, run, sample, and see what has come to an end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ernie_kernels.errors import NumericError
from ernie_kernels.outputs import Logprob
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.sampler import Sampler, most_probable
from ernie_kernels.runner.sequence import Progress, Sequence
from ernie_kernels.runner.static_scheduler import StaticScheduler
from ernie_kernels.tokenizer import Tokenizer


class Generation:
    """Sequences on their way to their ends.

    Args:
        eos_token_ids: end a sequence unless its parameters say ``ignore_eos``.
        tokenizer: for the text of the chosen tokens' alternatives, or None.
    """

    def __init__(
        self,
        scheduler: StaticScheduler,
        runner: ModelRunner,
        sampler: Sampler,
        *,
        eos_token_ids: Iterable[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._eos_token_ids = frozenset(eos_token_ids)
        self._tokenizer = tokenizer

    @property
    def is_done(self) -> bool:
        return self._scheduler.is_done

    def step(self) -> list[Progress]:
        """Run one step; returns what it added, nothing for prompts that are still being read."""
        scheduled = self._scheduler.schedule()
        if not scheduled:
            return []
        hidden_states = self._runner.run([span for _, span in scheduled])
        for sequence, span in scheduled:
            sequence.num_computed = span.stop
        sequences = [sequence for sequence, span in scheduled if span.num_outputs]
        if not sequences:
            return []
        logits = self._runner.logits(hidden_states)
        tokens, logprobs = self._sampler(logits, sequences)
        progress = [self._append(*item) for item in zip(sequences, tokens, logprobs, strict=True)]
        for sequence in sequences:
            if sequence.is_finished:
                self._scheduler.retire(sequence)
        return progress

    def _append(self, sequence: Sequence, token: int, logprobs: np.ndarray | None) -> Progress:
        if token < 0:
            sequence.finish_reason = "error"
            sequence.error = NumericError(
                f"request {sequence.request_index}: the logits after token "
                f"{sequence.num_tokens - 1} are not finite: weights or activations overflow; "
                "the request has ended, others are not affected"
            )
            rest = None if sequence.text_stream is None else sequence.text_stream.finish()[0]
            return Progress(sequence, None, rest, None)
        sequence.token_ids[sequence.num_tokens] = token
        sequence.num_tokens += 1
        alternatives = None if logprobs is None else self._alternatives(sequence, token, logprobs)
        return Progress(sequence, token, self._advance(sequence, token), alternatives)

    def _advance(self, sequence: Sequence, token: int) -> str | None:
        """The new token's text; decides whether the sequence has ended."""
        params, stream = sequence.params, sequence.text_stream
        is_end = token in (params.stop_token_ids or ()) or (
            token in self._eos_token_ids and not params.ignore_eos
        )
        delta: str = ""
        found: str | None = None
        if is_end:
            sequence.finish_reason, sequence.stop_reason = "stop", token
        elif stream is not None:
            delta, found = stream.push(token)
        if found is None and sequence.num_output_tokens == params.max_tokens and not is_end:
            sequence.finish_reason = "length"
        if found is None and sequence.is_finished and stream is not None:
            rest, found = stream.finish()
            delta += rest
        if found is not None:
            sequence.finish_reason, sequence.stop_reason = "stop", found
        return None if stream is None else delta

    def _alternatives(
        self, sequence: Sequence, token: int, logprobs: np.ndarray
    ) -> dict[int, Logprob]:
        ids = dict.fromkeys([token, *most_probable(logprobs, sequence.params.logprobs or 0)])
        return {
            token_id: Logprob(
                logprob=float(logprobs[token_id]),
                rank=1 + int(np.count_nonzero(logprobs > logprobs[token_id])),
                decoded_token=None
                if self._tokenizer is None
                else self._tokenizer.decode([token_id], skip_special_tokens=False),
            )
            for token_id in ids
        }
