"""What a caller holds of the requests that it has handed over."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ernie_kernels.runner.sequence import Progress, Sequence


@dataclass(slots=True, eq=False)
class Call:
    """Requests that came together, as the engine sees them."""

    number: int
    sequences: list[Sequence]
    news: deque[Sequence]  # one entry or more for each item of progress
    error: Exception | None = None  # of a step: all its sequences are lost
    is_closed: bool = False
    ticket: weakref.ref[Ticket] | None = field(default=None)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody is there any more to take what it brings."""
        return self.is_closed or self.ticket is None or self.ticket() is None


class Ticket:
    """The outputs of a call, to be taken as they come. For one thread at a time.

    The requests end with their ticket: when it is closed or nobody refers to it any more, in whatever
    thread, they are aborted by the next step.

    Attributes:
        request_ids: for ``Engine.abort``.
    """

    def __init__(self, call: Call, on_end: Callable[[object], None]) -> None:
        """Args: on_end: called with anything, in any thread; must not run Python code."""
        self.request_ids = list(dict.fromkeys(s.request_id for s in call.sequences))
        self._call = call
        self._num_unfinished = len(call.sequences)
        self._num_taken = dict.fromkeys(call.sequences, 0)
        self._on_end = on_end
        # Not __del__: the collector may run that in the middle of anything, and an interrupt would
        # get lost in it.
        call.ticket = weakref.ref(self, on_end)

    @property
    def is_done(self) -> bool:
        """Whether everything has been taken."""
        return self._num_unfinished == 0

    @property
    def has_news(self) -> bool:
        """Whether ``take`` has something to return or to raise."""
        return bool(self._call.news) or self._call.error is not None

    def take(self) -> list[tuple[Sequence, Progress]]:
        """What has been added since the last time; in order for each sequence.

        Raises:
            Exception: of a step. The requests have ended.
        """
        error = self._call.error
        if error is not None:
            self._num_unfinished = 0
            try:
                raise error
            finally:
                # Its traceback holds this frame and all tensors of the step: no way back to it, or
                # they would stay until the garbage collector comes.
                self._call.error = None
                del error
        taken = []
        news = self._call.news
        while news:
            sequence = news.popleft()
            start = self._num_taken[sequence]
            items = sequence.progress[start:]
            self._num_taken[sequence] = start + len(items)
            taken += [(sequence, item) for item in items]
            self._num_unfinished -= bool(items) and items[-1].finish_reason is not None
        return taken

    def close(self) -> None:
        """Abort what has not finished. May be called at any time, more than once."""
        self._call.is_closed = True
        self._on_end(self)
