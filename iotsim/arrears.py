"""How long what a publisher was given has waited for its verdict."""

from __future__ import annotations

from collections import deque

SAMPLES_MAX = 1_000


class Arrears:
    """Remembers how much had been handed over when, back to what is settled by now.

    Parameters
    ----------
    before : int
        Of what had been handed over before, nobody asks how old it is.

    Examples
    --------
    >>> arrears = Arrears()
    >>> arrears.look(1.0, 1_000_000, handed=10, settled=0)
    (0.0, 1000000)
    >>> arrears.look(4.0, 4_000_000, handed=40, settled=9)
    (3.0, 1000000)
    >>> arrears.look(5.0, 5_000_000, handed=50, settled=50)
    (0.0, 5000000)
    """

    def __init__(self, before: int = 0) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES_MAX)
        self._before = before

    def look(self, now_s: float, now_us: int, handed: int, settled: int) -> tuple[float, int]:
        """Return the age that the oldest without a verdict has at least, and since when.

        Parameters
        ----------
        now_s : float
        now_us : int
            The same moment in the run's own time.
        handed, settled : int
            How many so far.
        """
        self._samples.append((now_s, now_us, handed))
        while self._samples and self._samples[0][2] <= settled:
            self._samples.popleft()
        if not self._samples or settled < self._before:
            return 0.0, now_us
        return now_s - self._samples[0][0], self._samples[0][1]
