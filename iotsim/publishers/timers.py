"""A few timers by name; how long something was the oldest; signs of life of a peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from iotsim.clock import monotonic


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


class Oldest:
    """How long the oldest of what is in flight has been that, without leaving the flight."""

    __slots__ = ("_since_s", "_token")

    def __init__(self) -> None:
        self._token, self._since_s = -1, 0.0

    def age_s(self, flight: Mapping[int, object]) -> float:
        """Return for how many seconds the oldest was seen as that."""
        token, now_s = next(iter(flight), -1), monotonic()
        if token != self._token:
            self._token, self._since_s = token, now_s
        return now_s - self._since_s

    def left(self, flight: Mapping[int, object]) -> None:
        """Take that something left the flight; when it comes again its time begins anew."""
        if self._token not in flight:
            self._token = -1


class Pulse:
    """Asks a peer for a sign of life: half of a keepalive until then, half for the answer.

    Parameters
    ----------
    ask : callable ()
    silent : callable (seconds)
        Told if nothing was heard for so long after that; then the pulse has ended.
    """

    def __init__(self, ask: Callable[[], None], silent: Callable[[float], None]) -> None:
        self.heard = False
        self._ask, self._silent = ask, silent
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, keepalive_s: float) -> None:
        """Begin, or begin anew."""
        self.end()
        self._later(keepalive_s / 2, self._asks)

    def end(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self, half_s: float, then: Callable[[float], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(half_s, then, half_s)

    def _asks(self, half_s: float) -> None:
        self.heard = False
        self._later(half_s, self._checks)
        self._ask()

    def _checks(self, half_s: float) -> None:
        if self.heard:
            self._later(half_s, self._asks)
        else:
            self._timer = None
            self._silent(half_s)
