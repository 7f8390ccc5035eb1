"""From tokens to the text of an answer, as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from ernie_kernels.tokenizer import StreamDecoder, Tokenizer


class StopStringFinder:
    """Cuts a growing text before the first stop string that is completed.

    Of two that are completed by the same character the longer one counts. Where the text is cut
    into pieces makes no difference. Text is held back only while it may be the beginning of a stop
    string.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.rest = ""  # what followed the stop string

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; returns what can be shown now, and the stop string if one was found.

        After a stop string nothing more must be pushed.
        """
        text = self._held + text
        self._held = ""
        ends = [(at + len(s), -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            end, _, found = min(ends)
            self.rest = text[end:]
            return text[: end - len(found)], found
        keep = self._beginning_of_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """What is still held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of ``text`` that is a proper beginning of a stop string."""
        longest = min(len(text), max((len(s) for s in self._stop), default=1) - 1)
        for size in range(longest, 0, -1):
            end = text[len(text) - size :]
            if any(s.startswith(end) for s in self._stop):
                return size
        return 0


class TextStream:
    """The text of one answer: decoded, and cut before a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer, continues=True)
        self._finder = StopStringFinder(stop)

    def push(self, token_id: int) -> tuple[str, str | None]:
        """Take one token; returns the new text and the stop string that ends it, if any."""
        return self._finder.push(self._decoder.push(token_id))

    def finish(self) -> tuple[str, str | None]:
        """The rest, after the last token."""
        text, found = self._finder.push(self._decoder.finish())
        return (text, found) if found else (text + self._finder.finish(), None)
