"""Checks of what people give a fault, at the call: a number, a share, a time, names of fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from iotsim.errors import BadValue
from iotsim.signals.base import number
from iotsim.units import duration_text, duration_us

TEXT_CHARS_MAX = 128
_FIELDS = "Give the name of a field or a list of names, or leave it out for all numbers."


def keep(fault: Any, **checked: Any) -> None:
    """Put checked values into a frozen fault."""
    for name, value in checked.items():
        object.__setattr__(fault, name, value)


def share(name: str, value: Any) -> float:
    """Return a probability or a rate, from 0 to 1."""
    return number(name, value, least=0, most=1)


def loss_of_percent(name: str, value: Any) -> float | None:
    """Return the share that a NoTIP platform's loss means: above 1 it is per cent.

    0 is as if nobody had said, there; it cannot be told from that in what a platform sends.

    Examples
    --------
    >>> loss_of_percent("packet_loss_pct", 30), loss_of_percent("packet_loss_pct", 0.3)
    (0.3, 0.3)
    """
    if value is None:
        return None
    given = number(name, value, least=0, most=100)
    return None if not given else given / 100 if given > 1 else given


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number within its bounds."""
    allowed = f"Give a whole number from {least:,} to {most:,}."
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON and YAML do not always tell 3 from 3.0
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))
    if not whole:
        raise BadValue(name, value, "is not a whole number", allowed)
    if not least <= value <= most:
        raise BadValue(name, value, "is out of range", allowed)
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Return True or False, and take nothing else for it."""
    if not isinstance(value, (bool, np.bool_)):
        raise BadValue(name, value, "is not true or false", "Give True or False.")
    return bool(value)


def ramp(value: Any) -> str | None:
    """Return how long a fault takes to its full strength as text; None for at once."""
    if value is None:
        return None
    rise_us = duration_us(value, "ramp", zero=True)
    return duration_text(rise_us) if rise_us else None


def field_names(value: Any) -> tuple[str, ...] | None:
    """Return the names of fields, each once; None for what a fault takes by itself."""
    if value is None:
        return None
    if not isinstance(value, str) and not isinstance(value, Iterable):
        raise BadValue("field", value, "is not a name", _FIELDS)
    names = (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))
    if not names:
        raise BadValue("field", value, "names no field", _FIELDS)
    for name in names:
        if not isinstance(name, str) or not name:
            raise BadValue("field", name, "is not a name", _FIELDS)
    return names


def text(name: str, value: Any) -> str:
    """Return a short printable text."""
    if (not isinstance(value, str) or not value.strip() or not value.isprintable()
            or len(value) > TEXT_CHARS_MAX):
        raise BadValue(name, value, f"is not printable text of 1 to {TEXT_CHARS_MAX} characters",
                       f"Give some, such as {name}='2.0.0'.")
    return value
