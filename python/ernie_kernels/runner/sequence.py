"""One answer in the making: a prompt, what was generated, and where its cache lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ernie_kernels.errors import NumericError
from ernie_kernels.outputs import Logprob
from ernie_kernels.runner.sampling import SamplingParams
from ernie_kernels.runner.text_stream import TextStream

FinishReason = Literal["stop", "length", "error"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence of the batch. ``token_ids[:num_tokens]`` are its tokens, prompt first."""

    request_index: int
    index: int  # which of the request's n answers
    params: SamplingParams
    seed: int  # of this answer
    token_ids: np.ndarray  # int64, room for prompt and max_tokens
    num_prompt_tokens: int
    text_stream: TextStream | None  # None without a tokenizer

    num_tokens: int = 0
    num_computed: int = 0  # tokens whose keys and values are in the cache
    blocks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: NumericError | None = None

    def __post_init__(self) -> None:
        self.num_tokens = self.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens : self.num_tokens].tolist()

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step added to a sequence; ``token_id`` is None if it ended with an error."""

    sequence: Sequence
    token_id: int | None
    delta: str | None  # None without a tokenizer
    logprobs: dict[int, Logprob] | None
