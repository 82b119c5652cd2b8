"""Which microseconds a sensor has shown: none may be shown twice."""

from __future__ import annotations

from array import array

RUNS_MAX = 256  # of 24 bytes; a sensor that keeps its interval needs one


class Instants:
    """The times that one sensor has shown, and the first that is free.

    They are held as arithmetic progressions, so that a sensor that keeps its interval needs 24
    bytes for ever. Of more than 256 progressions the oldest are forgotten: a clock that jumps
    back behind them may show an old microsecond again; `forgotten` counts them.

    Examples
    --------
    >>> seen = Instants()
    >>> seen.claim(1_000_000), seen.claim(2_000_000), seen.claim(1_000_000)
    (1000000, 2000000, 1000001)
    """

    __slots__ = ("_last_us", "_runs", "_step_us", "forgotten", "latest_us")

    def __init__(self) -> None:
        self._runs = array("q")  # first, last, step; of the newest, `last` and `step` stand apart
        self._last_us = self._step_us = 0
        self.latest_us = -(1 << 62)
        self.forgotten = 0

    def claim(self, time_us: int) -> int:
        """Return the first free microsecond from `time_us` on; it is taken from now on."""
        if time_us > self.latest_us:
            self.latest_us = time_us
        else:
            time_us = self._free_from(time_us)
            self.latest_us = max(self.latest_us, time_us)
        if time_us - self._last_us == self._step_us and self._step_us:
            self._last_us = time_us
        else:
            self._begin(time_us)
        return time_us

    def _begin(self, time_us: int) -> None:
        runs = self._runs
        if runs and not self._step_us and time_us > self._last_us:
            self._step_us = time_us - self._last_us
            self._last_us = time_us
            return
        if runs:
            runs[-2], runs[-1] = self._last_us, self._step_us
        if len(runs) >= 3 * RUNS_MAX:
            del runs[:3 * RUNS_MAX // 2]
            self.forgotten += RUNS_MAX // 2
        runs.extend((time_us, time_us, 0))
        self._last_us, self._step_us = time_us, 0

    def _free_from(self, time_us: int) -> int:
        runs = self._runs
        if not runs:
            return time_us
        runs[-2], runs[-1] = self._last_us, self._step_us
        taken = True
        while taken:
            taken = False
            for k in range(0, len(runs), 3):
                first_us, last_us, step_us = runs[k], runs[k + 1], runs[k + 2]
                if not first_us <= time_us <= last_us or (time_us - first_us) % (step_us or 1):
                    continue
                time_us = last_us + 1 if step_us == 1 else time_us + 1
                taken = True
        return time_us
