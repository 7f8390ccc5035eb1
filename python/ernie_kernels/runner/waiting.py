"""Who wants the engine's lock."""

from __future__ import annotations

import threading

from ernie_kernels.errors import ArgumentError


class Waiting:
    """The threads that want the lock, or have it: each from ``with`` to the end of the block."""

    def __init__(self) -> None:
        self.stepping: int | None = None  # the thread that is in a step
        self._threads: dict[int, None] = {}

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if thread == self.stepping:
            raise ArgumentError(
                "LLM: called from within a step of its own thread, by a signal handler or a "
                "finaliser, and would wait for ever; call from another thread, or afterwards"
            )
        self._threads[thread] = None

    def __exit__(self, *_: object) -> None:
        self._threads.pop(threading.get_ident(), None)

    def __bool__(self) -> bool:
        return bool(self._threads)
