"""Whether a person has interrupted what is awaited: Ctrl-C in a script, the square in a notebook.

Both cancel what is awaited, and so do time limits and task groups: the cancellation does not say
who wanted it. So SIGINT is listened to while somebody waits, and handed on to whom it was for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Ear:
    """Listens in the main thread while anybody there waits."""

    def __init__(self) -> None:
        self.heard = self._users = 0
        self._before: Any = None

    def begin(self) -> None:
        self._users += 1
        before = signal.getsignal(signal.SIGINT)
        if before != self._hear and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._hear)

    def end(self) -> None:
        self._users -= 1
        if not self._users and signal.getsignal(signal.SIGINT) == self._hear:
            signal.signal(signal.SIGINT, self._before)
            self._before = None  # asyncio's holds a task, and that its result

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard += 1
        (self._before or signal.default_int_handler)(number, frame)


_EAR = _Ear()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether there was an interrupt since."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # interrupts are the main thread's
        return
    before = _EAR.heard
    _EAR.begin()
    try:
        yield lambda: _EAR.heard > before
    finally:
        _EAR.end()
