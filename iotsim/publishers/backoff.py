"""How long to wait before trying again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from iotsim.seeding import fnv1a, squares64, unit

BACKOFF_FIRST_S = 0.1
BACKOFF_CEILING_S = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait at most: after one failure, after many, where trying soon is no use.

    A publisher may have one as its attribute `pace`.
    """

    first_s: float
    ceiling_s: float
    slow_s: float


class Backoff:
    """Waiting times that double up to a ceiling, half of each left to chance.

    Parameters
    ----------
    name : str
        Seeds the chance, so that many who lost one broker do not come back at once.
    pace : Pace, optional
    """

    def __init__(self, name: str, pace: Pace | None = None) -> None:
        self._draws = 0
        self._key = fnv1a(name) | 1
        self._pace = pace

    def delay_s(self, failures: int, *, slow: bool = False) -> float:
        """Return how long to wait after so many failures, at least one."""
        pace = self._pace or Pace(BACKOFF_FIRST_S, BACKOFF_CEILING_S, BACKOFF_CEILING_S)
        ceiling_s = min(pace.first_s * 2.0 ** min(failures - 1, 16), pace.ceiling_s)
        if slow:
            ceiling_s = pace.slow_s
        self._draws += 1
        return ceiling_s * (0.5 + 0.5 * unit(squares64(self._draws, self._key)))


async def pause(seconds: float) -> None:
    """Return after some seconds, without polling."""
    over = asyncio.Event()
    timer = asyncio.get_running_loop().call_later(seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
