"""What generation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_kernels.errors import NumericError
    from ernie_kernels.runner.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's place among all that could have been chosen.

    Attributes:
        logprob: natural logarithm of its probability under the model, before penalties and
            temperature.
        rank: 1 for the most probable.
        decoded_token: its text, U+FFFD for a part of a character; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(slots=True)
class CompletionOutput:
    """One answer.

    Attributes:
        index: which of the request's ``n`` answers.
        text: without the stop string; None without a tokenizer.
        token_ids: everything generated, the end token or the tokens of a stop string included.
        finish_reason: "stop" (an end token or stop string), "length" (``max_tokens``), "error"
            (the model's output was not finite), "abort" (cancelled).
        stop_reason: the stop string or the id of the token that ended the answer.
        logprobs: for each token a mapping from ids to :class:`Logprob`, the chosen token first.
        reasoning: the model's thoughts before the answer, when ``chat`` was asked to enable them.
    """

    index: int
    text: str | None
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    reasoning: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers.

    Attributes:
        index: of the prompt in the call.
        prompt: as given, None for a prompt of token ids or messages.
        seed: that the answers depend on, drawn if the parameters named none.
        error: what ended an answer whose finish_reason is "error".
    """

    index: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    seed: int
    error: NumericError | None = None


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What a step adds to one answer; ``generate(..., stream=True)`` yields these.

    The deltas of an answer joined are its text.

    Attributes:
        request_index: of the prompt in the call.
        index: which of the request's ``n`` answers.
        delta: new text, maybe empty; None without a tokenizer.
        reasoning_delta: new text of the model's thoughts.
        token_ids: new tokens.
        logprobs: of the new tokens.
        finish_reason: set in the answer's last chunk.
        output: the whole request, in the last chunk of its last answer; else None.
    """

    request_index: int
    index: int
    delta: str | None
    token_ids: list[int]
    reasoning_delta: str = ""
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
