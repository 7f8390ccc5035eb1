"""Tells a model's thoughts from its answer, and ends them where they get too long."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ernie_kernels.runner.text_stream import StopStringFinder
from ernie_kernels.special_tokens import Segment
from ernie_kernels.tokenizer import Tokenizer

THINK_START = "<think>"
THINK_END = "</think>"


def opens_reasoning(segments: Iterable[Segment]) -> bool:
    """Whether an answer to this prompt begins inside ``<think>``: where the template ends with it.

    One that is opened before belongs to an earlier turn, whether it was closed or not.
    """
    end = next((s.text for s in reversed(list(segments)) if s.text.strip()), "")
    return end.rstrip().endswith(THINK_START)


class ReasoningLimit:
    """Puts ``</think>`` behind so many tokens of reasoning, if it has not come by then."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._end_ids = tokenizer.encode_with_special(THINK_END)

    def next_token(self, output_ids: np.ndarray, chosen: int) -> int:
        """What follows ``output_ids``: the token that was chosen, or one of ``</think>``.

        It depends on these alone, so a step may be repeated.
        """
        place = len(output_ids) - self._max_tokens
        if chosen < 0 or not 0 <= place < len(self._end_ids):
            return chosen
        if THINK_END in self._tokenizer.decode(output_ids[: self._max_tokens].tolist()):
            return chosen
        return self._end_ids[place]


class ReasoningSplitter:
    """Splits a growing text that begins inside ``<think>``.

    Everything up to ``</think>`` is reasoning; the answer follows, without its leading newlines.
    Where the text is cut into pieces makes no difference.
    """

    def __init__(self) -> None:
        self._end = StopStringFinder((THINK_END,))
        self._is_reasoning = True
        self._is_at_start = True  # of the answer

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; returns the new reasoning and the new text of the answer."""
        reasoning = ""
        if self._is_reasoning:
            reasoning, found = self._end.push(text)
            if found is None:
                return reasoning, ""
            self._is_reasoning = False
            text = self._end.rest
        if self._is_at_start:
            text = text.lstrip("\n")
            self._is_at_start = not text
        return reasoning, text

    def finish(self) -> str:
        """Reasoning still held back when no more text comes."""
        return self._end.finish()
