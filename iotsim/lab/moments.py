"""Instants as the platform writes and reads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(Z|[+-]\d{2}:\d{2})"
)


def iso_ms(time_us: int) -> str:
    """Return an instant with milliseconds and `Z`, as Node does.

    Examples
    --------
    >>> iso_ms(1_500_000)
    '1970-01-01T00:00:01.500Z'
    """
    moment = _EPOCH + timedelta(microseconds=time_us)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instant_of(text: object) -> int | None:
    """Return the microseconds since 1970 of an instant of RFC 3339, cut; None if it is none.

    Examples
    --------
    >>> instant_of("1970-01-01T01:00:00.123456789+01:00")
    123456
    >>> instant_of("yesterday")
    """
    found = _RFC3339.fullmatch(text) if isinstance(text, str) and text.isascii() else None
    if found is None:
        return None
    day, time, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{zone.replace('Z', '+00:00')}")
    except ValueError:
        return None
    whole_us = (moment - _EPOCH) // timedelta(microseconds=1)
    return whole_us + int((fraction or "").ljust(6, "0")[:6])
