"""Gathers the progress of sequences into what a caller receives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ernie_kernels.errors import NumericError
from ernie_kernels.outputs import CompletionOutput, GenerationChunk, RequestOutput
from ernie_kernels.runner.reasoning import ReasoningSplitter
from ernie_kernels.runner.requests import Request
from ernie_kernels.runner.sequence import Progress, Sequence


class Collector:
    """The outputs of one call while they grow."""

    def __init__(self, requests: list[Request], *, has_text: bool) -> None:
        self.outputs = [
            RequestOutput(
                index=request.index,
                prompt=request.prompt,
                prompt_token_ids=request.token_ids.tolist(),
                outputs=[
                    CompletionOutput(
                        index=index,
                        text="" if has_text else None,
                        logprobs=None if request.params.logprobs is None else [],
                        reasoning="" if request.opens_reasoning else None,
                    )
                    for index in range(request.params.n)
                ],
                seed=request.seed,
            )
            for request in requests
        ]
        self._splitters = {
            (request.index, index): ReasoningSplitter()
            for request in requests
            for index in range(request.params.n)
            if request.opens_reasoning
        }

    def chunks(self, taken: Iterable[tuple[Sequence, Progress]]) -> Iterator[GenerationChunk]:
        """Enter what was taken from a ticket; one chunk for each."""
        for sequence, item in taken:
            yield self._chunk(sequence, item)

    def _chunk(self, sequence: Sequence, item: Progress) -> GenerationChunk:
        request = self.outputs[sequence.request_index]
        answer = request.outputs[sequence.index]
        reasoning, delta = "", item.delta
        splitter = self._splitters.get((request.index, answer.index))
        if splitter is not None and delta is not None:
            reasoning, delta = splitter.push(delta)
            if item.finish_reason is not None:
                reasoning += splitter.finish()
            answer.reasoning = (answer.reasoning or "") + reasoning
        if delta is not None:
            answer.text = (answer.text or "") + delta
        token_ids = [] if item.token_id is None else [item.token_id]
        answer.token_ids += token_ids
        if answer.logprobs is not None and item.logprobs is not None:
            answer.logprobs.append(item.logprobs)
        answer.finish_reason = item.finish_reason
        answer.stop_reason = item.stop_reason
        request.error = item.error or request.error
        is_last = all(each.finish_reason for each in request.outputs)
        return GenerationChunk(
            request_index=request.index,
            index=answer.index,
            delta=delta,
            reasoning_delta=reasoning,
            token_ids=token_ids,
            logprobs=None if item.logprobs is None else [item.logprobs],
            finish_reason=item.finish_reason,
            output=request if is_last else None,
        )

    def raise_errors(self) -> None:
        """Raise the first error of a request, if any; its ``outputs`` are those of all requests."""
        for request in self.outputs:
            if request.error is not None:
                raise NumericError(str(request.error), outputs=self.outputs)
