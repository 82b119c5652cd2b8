"""Time as an object: simulated time is whole microseconds, virtual or paced.

Nothing else in iotsim reads a clock. Changing the speed of a paced clock changes its pace, never
what happens at an instant.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, Literal, TypeAlias

from iotsim.errors import BadValue

Speed: TypeAlias = float | int | Literal["max"]
SPEED_MAX = 1e9
THERE_S = 0.02  # so little behind real time is not behind it
PACES_MAX = 10_000


def monotonic() -> float:
    """Return seconds of the machine's monotonic clock."""
    return time.monotonic()


def cpu_s() -> float:
    """Return the seconds of processor time that this process has used."""
    return time.process_time()


def thread_cpu_s() -> float:
    """Return the seconds of processor time that this thread has used."""
    return time.thread_time()


def wall_us() -> int:
    """Return the wall clock in microseconds since 1970, cut to whole milliseconds."""
    return time.time_ns() // 1_000_000 * 1000


def stamp_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1000


def check_speed(speed: Any) -> float:
    """Return the speed as a factor of real time; `"max"` is infinity.

    Examples
    --------
    >>> check_speed("max"), check_speed(60)
    (inf, 60.0)
    """
    allowed = f"Give a factor of real time above 0 and up to {SPEED_MAX:g}, or 'max'."
    if isinstance(speed, str):
        if speed == "max":
            return math.inf
        raise BadValue("speed", speed, "is not a speed", allowed)
    try:
        factor = float(speed)
    except (TypeError, ValueError, OverflowError):
        raise BadValue("speed", speed, "is not a speed", allowed) from None
    if isinstance(speed, bool) or not 0 < factor <= SPEED_MAX:
        raise BadValue("speed", speed, "is out of range", allowed)
    return factor


class PacedClock:
    """Simulated time that follows real time at a chosen speed.

    Simulated time = anchor + elapsed real time × speed, whoever is late; a pause stops it. At
    speed infinity the clock is virtual: it stands where it was last moved to.

    Attributes
    ----------
    speed : float
    paused : bool
    paces : deque of (simulated µs, wall clock µs, speed)
        From when on it has gone how fast; 0 while it is paused. The last 10,000 changes.
    """

    def __init__(self, start_us: int, speed: float) -> None:
        self.speed = speed
        self.paused = False
        self._anchor_us = start_us
        self._anchor_s = monotonic()
        self._then: tuple[int, float, float | None] | None = None
        self._left_us = math.inf
        self.paces: deque[tuple[int, int, float]] = deque(maxlen=PACES_MAX)
        self._mark()

    def hurry_until(self, time_us: int, *, catch_up: bool) -> None:
        """Be virtual up to an instant, and only then follow real time at the speed there is.

        Parameters
        ----------
        time_us : int
        catch_up : bool
            Whether that instant is now: real time that goes by until then is caught up, too.
        """
        self._then = time_us, self.speed, monotonic() if catch_up else None
        self.speed = math.inf
        self._mark()

    @property
    def hurries(self) -> bool:
        """Whether it is on its way to where it will follow real time."""
        return self._then is not None

    @property
    def live_us(self) -> int:
        """Where a clock that hurries would follow real time; far in the past if it does not."""
        if self._then is None:
            return -(2**62)
        live_us, speed, since_s = self._then
        if since_s is None or math.isinf(speed):
            return live_us
        return live_us + int((monotonic() - since_s) * speed * 1_000_000)

    def catch_up(self, time_us: int) -> None:
        """Follow real time from now on if it has come to where it was to hurry to.

        Real time goes on meanwhile, so it is there when little is left, or when what is left does
        not get less any more: then it cannot go any faster.
        """
        if self._then is None or time_us < self._then[0]:
            return
        _, speed, since_s = self._then
        live_us = self.live_us
        left_us = live_us - time_us
        if left_us > THERE_S * speed * 1_000_000 and left_us < self._left_us:
            self._left_us = left_us
            return
        self.speed, self._then = speed, None
        self._anchor(time_us if since_s is None else max(time_us, live_us))
        self._mark()

    @property
    def virtual(self) -> bool:
        """Whether time jumps instead of following real time."""
        return math.isinf(self.speed)

    def now_us(self) -> int:
        """Return the simulated instant."""
        if self.paused or self.virtual:
            return self._anchor_us
        elapsed_s = monotonic() - self._anchor_s
        return self._anchor_us + int(elapsed_s * self.speed * 1_000_000)

    def move_to(self, time_us: int) -> None:
        """Put a virtual clock to a later instant."""
        if self.virtual:
            self._anchor_us = max(self._anchor_us, time_us)

    def real_s_until(self, time_us: int) -> float:
        """Return real seconds until an instant: infinity when paused, 0 if it has passed."""
        if self.paused:
            return math.inf
        if self.virtual:
            return 0.0
        return max(0.0, (time_us - self.now_us()) / (self.speed * 1_000_000))

    def set_speed(self, speed: float) -> None:
        """Change the pace from now on; while it hurries, from when it has come there."""
        if self._then is not None:
            self._then = self._then[0], speed, self._then[2]
            return
        self._anchor(self.now_us())
        self.speed = speed
        self._mark()

    def pause(self) -> None:
        """Stop simulated time."""
        self._anchor(self.now_us())
        self.paused = True
        self._mark()

    def resume(self) -> None:
        """Let simulated time go on from where it stopped."""
        self.paused = False
        self._anchor_s = monotonic()
        self._mark()

    def _anchor(self, time_us: int) -> None:
        self._anchor_us, self._anchor_s = time_us, monotonic()

    def _mark(self) -> None:
        self.paces.append((self._anchor_us, stamp_us(), 0.0 if self.paused else self.speed))
