"""A few timers by name, each at most once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Calls back once for each name; all of them can be called off together."""

    def __init__(self) -> None:
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def arm(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back after a delay, unless a timer of this name runs already."""
        if name not in self._handles:

            def fire() -> None:
                self._handles.pop(name, None)
                callback()

            self._handles[name] = asyncio.get_running_loop().call_later(delay_s, fire)

    def extend(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back after a delay, or when the timer of this name would, whichever is later."""
        before = self._handles.get(name)
        if before is not None and before.when() < asyncio.get_running_loop().time() + delay_s:
            self._handles.pop(name).cancel()
        self.arm(name, delay_s, callback)

    def cancel(self) -> None:
        """Call off all of them."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
