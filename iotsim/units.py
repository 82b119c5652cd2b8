"""Durations, instants and resolutions: the only place that parses what people write.

Inside, time is an integer number of microseconds. Outside, a duration is `"500ms"`, `"5s"`,
`"1h30m"`, a number of seconds or a `timedelta`; an instant is ISO 8601 text or an aware
`datetime`.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from iotsim.errors import BadValue

Duration: TypeAlias = str | int | float | timedelta
Instant: TypeAlias = str | datetime

US_PER_SECOND = 1_000_000
DURATION_US_MAX = 1000 * 365 * 86_400 * US_PER_SECOND  # 1,000 years; sums stay far below 2**63
DEFAULT_START = "2026-01-01T00:00:00Z"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_UNIT_US = {
    "us": Fraction(1),
    "µs": Fraction(1),
    "ms": Fraction(1000),
    "s": Fraction(US_PER_SECOND),
    "min": Fraction(60 * US_PER_SECOND),
    "m": Fraction(60 * US_PER_SECOND),
    "h": Fraction(3600 * US_PER_SECOND),
    "d": Fraction(86_400 * US_PER_SECOND),
}
_NUMPY_US = {
    "ns": Fraction(1, 1000), "us": _UNIT_US["us"], "ms": _UNIT_US["ms"], "s": _UNIT_US["s"],
    "m": _UNIT_US["m"], "h": _UNIT_US["h"], "D": _UNIT_US["d"], "W": 7 * _UNIT_US["d"],
}
_PART = re.compile(r"\s*(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?)\s*(?P<unit>µs|[a-z]+)")
_ALLOWED = (
    "Give seconds (5, 0.5), text with a unit (us, ms, s, m, h, d) such as '5s' or '1h30m', "
    "or a timedelta; from 1 us to 1,000 years."
)


def duration_us(value: Duration, name: str = "duration", *, zero: bool = False) -> int:
    """Return a duration in whole microseconds.

    Parameters
    ----------
    value : str, int, float or timedelta
        Numbers are seconds. Text is a chain of number and unit: us, ms, s, m, h, d.
    name : str
        What the caller calls it; used in the error.
    zero : bool
        Whether a duration of nothing is allowed.

    Returns
    -------
    int
        Microseconds, rounded to the nearest.

    Raises
    ------
    BadValue
        If it is not a duration, is negative, nan, infinite, over 1,000 years, or zero where zero
        makes no sense.

    Examples
    --------
    >>> duration_us("1h30m")
    5400000000
    >>> duration_us(0.25)
    250000
    """
    exact = _exact_us(value, name)
    if exact < 0:
        raise BadValue(name, value, "is negative", _ALLOWED)
    if exact > DURATION_US_MAX:
        raise BadValue(name, value, "is over 1,000 years", _ALLOWED)
    microseconds = round(exact)
    if microseconds == 0 and not (zero and exact == 0):
        why = "is zero" if exact == 0 else "is shorter than one microsecond"
        raise BadValue(name, value, why, _ALLOWED)
    return microseconds


def _exact_us(value: Any, name: str) -> Fraction:
    if isinstance(value, timedelta):
        return Fraction(value // timedelta(microseconds=1))
    if isinstance(value, np.timedelta64):
        return _numpy_us(value, name)
    if isinstance(value, (bool, np.bool_, bytes, bytearray)):
        raise BadValue(name, value, "is not a duration", _ALLOWED)
    if isinstance(value, int):
        return Fraction(value) * US_PER_SECOND
    if isinstance(value, str):
        return _text_us(value, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadValue(name, value, "is not a duration", _ALLOWED) from None
    except OverflowError:
        raise BadValue(name, value, "is out of range", _ALLOWED) from None
    if not math.isfinite(number):
        raise BadValue(name, value, "is not finite", _ALLOWED)
    return Fraction(number) * US_PER_SECOND


def _numpy_us(value: np.timedelta64, name: str) -> Fraction:
    unit, step = np.datetime_data(value.dtype)
    if unit not in _NUMPY_US:
        raise BadValue(name, value, "has no unit of a fixed length", _ALLOWED)
    if np.isnat(value):
        raise BadValue(name, value, "is not a duration", _ALLOWED)
    return int(value.astype(np.int64)) * step * _NUMPY_US[unit]


def _text_us(text: str, name: str) -> Fraction:
    body = text.strip().removeprefix("-")
    if not body or len(text) > 64:
        raise BadValue(name, text, "is not a duration", _ALLOWED)
    total, position = Fraction(0), 0
    while position < len(body):
        part = _PART.match(body, position)
        if part is None or part["unit"] not in _UNIT_US:
            raise BadValue(name, text, "is not a duration", _ALLOWED)
        total += Fraction(part["number"]) * _UNIT_US[part["unit"]]
        position = part.end()
    return -total if text.strip().startswith("-") else total


def instant_us(value: Instant, name: str = "start") -> int:
    """Return an instant as microseconds since 1970-01-01T00:00Z.

    Parameters
    ----------
    value : str or datetime
        ISO 8601 text (`Z` or an offset; without one it is UTC), or a datetime with a zone.
    name : str
        What the caller calls it; used in the error.

    Raises
    ------
    BadValue
        If it is not an instant, or a datetime without a zone.

    Examples
    --------
    >>> instant_us("1970-01-01T00:00:01Z")
    1000000
    """
    allowed = "Give ISO text such as '2026-01-01T00:00:00Z' or a datetime with a time zone."
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise BadValue(name, value, "has no time zone", allowed)
        moment = value
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise BadValue(name, value, "is not an instant", allowed) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    else:
        raise BadValue(name, value, "is not an instant", allowed)
    try:
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except OverflowError:
        raise BadValue(name, value, "is out of range", allowed) from None


def end_us_of(start_us: int, duration_total_us: int) -> int:
    """Return where a run ends; it must be before the year 10,000, which no calendar here knows.

    Raises
    ------
    BadValue
        If it is not.
    """
    end_us = start_us + duration_total_us
    if end_us > _LAST_US:
        length = duration_text(duration_total_us)
        raise BadValue("duration", length, f"from {instant_text(start_us)} on goes beyond the "
                       "year 9999", "Give an earlier start or a shorter duration.")
    return end_us


def instant_text(time_us: int) -> str:
    """Return an instant as it stands on the wire: six fractional digits and `Z`.

    Examples
    --------
    >>> instant_text(1000000)
    '1970-01-01T00:00:01.000000Z'
    """
    moment = _EPOCH + timedelta(microseconds=time_us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f").rjust(26, "0") + "Z"


def duration_text(microseconds: int) -> str:
    """Return a duration as people write it, exactly.

    Examples
    --------
    >>> duration_text(5400000000)
    '1h30m'
    >>> duration_text(1500), duration_text(61_200_000)
    ('1500us', '1m1.2s')
    """
    if microseconds == 0:
        return "0s"
    parts, rest = [], microseconds
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000)):
        count, rest = divmod(rest, size)
        parts += [f"{count}{unit}"] if count else []
    if rest > US_PER_SECOND and rest % US_PER_SECOND:
        whole, part = divmod(rest, US_PER_SECOND)
        return "".join([*parts, f"{whole}.{part:06}".rstrip("0"), "s"])
    for unit, size in (("s", 1_000_000), ("ms", 1000), ("us", 1)):
        if rest and rest % size == 0:
            parts.append(f"{rest // size}{unit}")
            break
    return "".join(parts)


def clock_text(microseconds: int) -> str:
    """Return an elapsed time as `HH:MM:SS`.

    Examples
    --------
    >>> clock_text(761_000_000)
    '00:12:41'
    """
    minutes, seconds = divmod(microseconds // US_PER_SECOND, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"
