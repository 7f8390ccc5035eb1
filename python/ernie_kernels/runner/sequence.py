"""One answer in the making: a prompt, what was generated, and where its cache lies."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ernie_kernels.errors import NumericError
from ernie_kernels.outputs import Logprob
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.runner.prefix import block_hash, salt_hash
from ernie_kernels.runner.reasoning import ReasoningLimit
from ernie_kernels.runner.sampling import SamplingParams
from ernie_kernels.runner.text_stream import TextStream
from ernie_kernels.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "error", "abort"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step added to a sequence: a token with its text, an end, or both."""

    token_id: int | None  # None if it ended without one
    delta: str | None  # None without a tokenizer
    logprobs: dict[int, Logprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: NumericError | None = None


@dataclass(slots=True, eq=False, repr=False)
class Sequence:
    """A sequence of the batch. ``token_ids[:num_tokens]`` are its tokens, prompt first.

    ``progress`` only ever grows, by one ``append`` for each token: that is the moment when the token
    counts. Everything else here follows from it, or can be had again by computing. Behind the tokens
    that count ``token_ids`` may hold guesses at the next ones (:mod:`.speculation`).
    """

    request_index: int  # of the request in its call
    index: int  # which of the request's n answers
    params: SamplingParams
    seed: int  # of this answer
    token_ids: np.ndarray  # int64, room for prompt and max_tokens
    num_prompt_tokens: int
    tokenizer: Tokenizer | None = None
    salt: bytes = b""  # of what else the result depends on
    media: PromptMedia | None = None  # of the prompt; None again once the sequence is taken out
    reasoning_limit: ReasoningLimit | None = None
    # Read only, no tokens wanted: [num_prompt_tokens, vocab_size] float32, to be filled.
    logits: np.ndarray | None = None

    request_id: int = -1
    arrival: int = -1  # place in the order of all sequences
    siblings: list[Sequence] = field(default_factory=list)  # all answers to the same request
    news: deque[Sequence] = field(default_factory=deque)  # of its call: who has made progress
    progress: list[Progress] = field(default_factory=list)
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_drafted: int = 0  # guesses behind the tokens that count
    block_table: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    num_blocks: int = 0  # of the table's entries that count
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, as far as asked for
    text_stream: TextStream | None = None  # None without a tokenizer

    def __post_init__(self) -> None:
        self.replay_text()

    @property
    def num_output_tokens(self) -> int:
        progress = self.progress
        return len(progress) - (bool(progress) and progress[-1].token_id is None)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens : self.num_tokens].tolist()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.progress[-1].finish_reason if self.progress else None

    @property
    def is_finished(self) -> bool:
        return bool(self.progress) and self.progress[-1].finish_reason is not None

    @property
    def blocks(self) -> np.ndarray:
        """The cache blocks it holds, in order: int32."""
        return self.block_table[: self.num_blocks]

    def hashes(self, count: int, block_size: int, lookahead: int = 0) -> list[bytes]:
        """The names of the first ``count`` blocks, all full of known tokens.

        Args:
            lookahead: known tokens behind a block that its contents depend on as well.
        """
        names = self.block_hashes
        while len(names) < count:
            start = len(names) * block_size
            parent = names[-1] if names else salt_hash(self.salt)
            stop = start + block_size + lookahead
            seen = b"" if self.media is None else self.media.name_of(start, stop)
            names.append(block_hash(parent, self.token_ids[start:stop], seen))
        return names[:count]

    def replay_text(self) -> None:
        """Make the text stream anew, in the state that the tokens so far lead to."""
        if self.tokenizer is None:
            return
        stream = TextStream(self.tokenizer, self.params.stop or ())
        for item in self.progress:
            if item.token_id is not None:
                stream.push(item.token_id)
        self.text_stream = stream
