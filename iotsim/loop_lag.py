"""How late the event loop is: a timer of ours that ought to fire every 50 ms."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from iotsim.clock import monotonic
from iotsim.publishers.ledger import Latency

BEAT_S = 0.050


class LoopLag:
    """Measures how late callbacks are on the loop that it was begun on.

    Parameters
    ----------
    beat : callable (now_s, lag_s)
        Told at each turn of the timer; `lag_s` is how late that was.

    Attributes
    ----------
    max_s : float
        The latest so far; NaN before the first beat.
    """

    def __init__(self, beat: Callable[[float, float], None]) -> None:
        self.max_s = math.nan
        self._beat = beat
        self._lags = Latency()
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin on the running loop; to begin twice is to begin once."""
        if self._timer is None:
            self._arm(monotonic())

    def end(self) -> None:
        """Stop measuring; what was measured stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def quantile(self, share: float) -> float:
        """Return the lag that `share` of all beats stay below; NaN before the first."""
        return self._lags.quantile(share)

    def _arm(self, now_s: float) -> None:
        self._due_s = now_s + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._fire)

    def _fire(self) -> None:
        now_s = monotonic()
        lag_s = max(0.0, now_s - self._due_s)
        self._lags.add((lag_s,))
        self.max_s = lag_s if math.isnan(self.max_s) else max(self.max_s, lag_s)
        self._arm(now_s)
        self._beat(now_s, lag_s)
