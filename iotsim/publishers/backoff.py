"""How long to wait before trying again."""

from __future__ import annotations

import asyncio

from iotsim.seeding import fnv1a, squares64, unit

BACKOFF_FIRST_S = 0.1
BACKOFF_CEILING_S = 5.0


class Backoff:
    """Waiting times that double up to a ceiling, half of each left to chance.

    Parameters
    ----------
    name : str
        Seeds the chance, so that many who lost one broker do not come back at once.
    """

    def __init__(self, name: str) -> None:
        self._draws = 0
        self._key = fnv1a(name) | 1

    def delay_s(self, failures: int) -> float:
        """Return how long to wait after so many failures, at least one."""
        ceiling_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_CEILING_S)
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
