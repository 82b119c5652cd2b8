"""Chance in a scenario script: streams of its own, so that chaos is the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iotsim.errors import BadValue
from iotsim.seeding import combine_many, device_key, fnv1a_many, squares64, stream_key, unit

VERSION = 1
_STREAM = "\0scenario"
_CHOICE = "\0choose"


class Dice:
    """Draws of named streams under a seed, one after the other.

    Examples
    --------
    >>> Dice(1).uniform("waves") == Dice(1).uniform("waves")
    True
    """

    def __init__(self, seed: int) -> None:
        self._key = device_key(seed, _STREAM)
        self._counts: dict[str, int] = {}

    def uniform(self, name: str) -> float:
        """Return the next draw of a stream, in [0, 1)."""
        if not isinstance(name, str) or not name:
            raise BadValue("name", name, "is not the name of a stream", "Give text such as 'wave'.")
        return unit(self._word(name))

    def choose(self, ids: Sequence[str], count: Any, fraction: Any) -> list[str]:
        """Return some of the ids, in their order: others at every call.

        Who is chosen goes by a hash of the id and of this draw, so a device that is not there
        changes nobody else's luck.
        """
        if (count is None) == (fraction is None):
            raise BadValue("choose", {"count": count, "fraction": fraction}, "is not one of them",
                           "Give count=5, or fraction=0.1.")
        luck = combine_many(self._word(_CHOICE), fnv1a_many(ids))
        if fraction is not None:
            part = _fraction(fraction)
            chosen = np.flatnonzero(luck.astype(np.float64) * 2.0**-64 < part)
        else:
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise BadValue("count", count, "is not a whole number", "Give 0 or more.")
            chosen = np.sort(np.argsort(luck, kind="stable")[:count])
        return [ids[i] for i in chosen.tolist()]

    def _word(self, name: str) -> int:
        n = self._counts.get(name, 0)
        self._counts[name] = n + 1
        return squares64(n, stream_key(self._key, name, VERSION))


def _fraction(value: Any) -> float:
    try:
        text = value.removesuffix("%") if isinstance(value, str) else value
        part = float(text) / (100 if text is not value else 1)
    except (TypeError, ValueError):
        part = -1.0
    if isinstance(value, bool) or not 0 <= part <= 1:
        raise BadValue("fraction", value, "is not from 0 to 1", "Give 0.1 or '10%'.")
    return part
