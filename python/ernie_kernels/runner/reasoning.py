"""Tells a model's thoughts from its answer."""

from __future__ import annotations

from ernie_kernels.runner.text_stream import StopStringFinder

THINK_START = "<think>"
THINK_END = "</think>"


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
