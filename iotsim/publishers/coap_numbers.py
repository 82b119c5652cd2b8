"""Message ids of one CoAP endpoint: none is used twice while a server may remember it."""

from __future__ import annotations

EXCHANGE_LIFETIME_S = 247.0  # of a confirmable message, RFC 7252 §4.8.2
NON_LIFETIME_S = 145.0
_BLOCKS = 64
_BLOCK = 65_536 // _BLOCKS


class Numbers:
    """Gives out 16-bit numbers in turn, from a chosen one.

    65,536 of them for 247 s are 265 confirmable messages a second (452 others) for ever; what is
    faster uses them up.

    Examples
    --------
    >>> numbers = Numbers(65_535)
    >>> numbers.take(0.0), numbers.take(0.0)
    (65535, 0)
    """

    def __init__(self, first: int, *, confirmable: bool = True) -> None:
        self.lifetime_s = EXCHANGE_LIFETIME_S if confirmable else NON_LIFETIME_S
        self._first = first & 0xFFFF
        self._count = 0
        self._last_used_s = [-1e9] * _BLOCKS  # of each block of numbers, in the order given out

    def take(self, now_s: float) -> int | None:
        """Return a number, or None if the next one may still be remembered."""
        block = self._count // _BLOCK % _BLOCKS
        if self._count % _BLOCK == 0 and now_s - self._last_used_s[block] < self.lifetime_s:
            return None
        self._last_used_s[block] = now_s
        number = (self._first + self._count) & 0xFFFF
        self._count += 1
        return number

    def next(self, now_s: float) -> int:
        """Return a number where there must be one: of a fresh endpoint."""
        number = self.take(now_s)
        assert number is not None, "a fresh endpoint has all of them"
        return number
