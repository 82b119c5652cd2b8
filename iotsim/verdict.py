"""The words in which a run says whether it was valid."""

from __future__ import annotations

from iotsim.units import clock_text

VALID = "valid"
BECAUSE = ", because "
NAMELY = ": "


def brief(quality: str) -> str:
    """Return who was the bottleneck and when, without the reasons.

    Examples
    --------
    >>> brief("the simulator was the bottleneck from 00:41 to 01:10, because it used a whole core")
    'the simulator was the bottleneck from 00:41 to 01:10'
    """
    parts = (part.partition(BECAUSE)[0].partition(NAMELY)[0] for part in quality.split("; "))
    return "; ".join(parts)


def short_clock(microseconds: int) -> str:
    """Return an elapsed time as `MM:SS`, or as `HH:MM:SS` from one hour on.

    Examples
    --------
    >>> short_clock(41_000_000), short_clock(3_700_000_000)
    ('00:41', '01:01:40')
    """
    return clock_text(microseconds).removeprefix("00:")
