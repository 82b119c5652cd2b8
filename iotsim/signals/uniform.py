"""Independent values, all equally likely between two bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from iotsim.errors import BadValue
from iotsim.seeding import Words, draws, squares64, unit, unit_many
from iotsim.signals.base import (
    Floats,
    Signal,
    Single,
    Site,
    Source,
    Span,
    Steps,
    Tick,
    number,
    register,
)


@register("uniform_random")
@dataclass(frozen=True, slots=True)
class Uniform(Signal):
    """Independent uniform values: min + U · (max − min), U in [0, 1).

    Parameters
    ----------
    min, max : float
        `min` is reached, `max` never.
    """

    min: Any
    max: Any

    def __post_init__(self) -> None:
        bounds(self.min, self.max)

    @property
    def span(self) -> Span:
        """The bounds."""
        return bounds(self.min, self.max)

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Uniform(Law.of(self.min, self.max), site.keys(self.version))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        law, key = Law.of(self.min, self.max), site.key(self.version)

        def value(tick: Tick) -> float:
            return law.one(squares64(tick.n, key))

        return value


def bounds(low: Any, high: Any) -> tuple[float, float]:
    """Return checked bounds as floats, −0 as 0."""
    found = number("min", low) + 0.0, number("max", high) + 0.0
    if found[0] >= found[1]:
        raise BadValue("min", low, f"is not below max={high!r}", "Swap them.")
    return found


@dataclass(frozen=True, slots=True)
class Law:
    """Words to uniform values in [low, low + width), kept below the upper bound by `last`."""

    low: float
    width: float
    last: float

    @classmethod
    def of(cls, low: Any, high: Any) -> Law:
        """Return the law between two bounds."""
        first, end = bounds(low, high)
        return cls(first, end - first, math.nextafter(end, first))

    def many(self, words: Words) -> Floats:
        """Return a value for every word, same shape."""
        values = unit_many(words)
        values *= self.width
        values += self.low
        return np.minimum(values, self.last, out=values)

    def one(self, word: int) -> float:
        """Return `many` of one word."""
        value = unit(word) * self.width + self.low
        return min(value, self.last)


@dataclass(slots=True)
class _Uniform:
    law: Law
    keys: Words

    def step(self, steps: Steps) -> Floats:
        return self.law.many(draws(self.keys[steps.devices], steps.counters))
