"""Uniform values with rare excursions far outside their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
from iotsim.signals.uniform import Law, bounds


@register("spike")
@dataclass(frozen=True, slots=True)
class Spike(Signal):
    """Uniform values, and now and then an excursion, half of them up and half down.

    An excursion is at max + magnitude · (max − min), or as far below min.

    Parameters
    ----------
    min, max : float
        Bounds of the values between excursions.
    probability : float
        Of an excursion in one reading, 0 to 1.
    magnitude : float
        How far out, in widths of the range; ≥ 0.
    """

    min: Any
    max: Any
    probability: Any = 0.1
    magnitude: Any = 1.5

    def __post_init__(self) -> None:
        Law.of(self.min, self.max)
        number("probability", self.probability, least=0, most=1)
        number("magnitude", self.magnitude, least=0, most=1e6)

    @property
    def span(self) -> Span:
        """The bounds between excursions."""
        return bounds(self.min, self.max)

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = float(self.min), float(self.max)
        reach = float(self.magnitude) * (high - low)
        return high + reach, low - reach

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Spike(Law.of(self.min, self.max), float(self.probability), self._ends,
                      site.keys(self.version), site.keys(self.version, "spike"))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        law, probability, (up, down) = (
            Law.of(self.min, self.max), float(self.probability), self._ends
        )
        key, chance_key = site.key(self.version), site.key(self.version, "spike")

        def value(tick: Tick) -> float:
            chance = squares64(tick.n, chance_key)
            if unit(chance) < probability:
                return down if chance & 1 else up
            return law.one(squares64(tick.n, key))

        return value


@dataclass(slots=True)
class _Spike:
    law: Law
    probability: float
    ends: tuple[float, float]
    keys: Words
    chance_keys: Words

    def step(self, steps: Steps) -> Floats:
        values = self.law.many(draws(self.keys[steps.devices], steps.counters))
        chances = draws(self.chance_keys[steps.devices], steps.counters)
        hit = unit_many(chances) < self.probability
        down = (chances & np.uint64(1)).astype(bool)  # the lowest bit is not part of the unit
        up_value, down_value = self.ends
        values[hit & ~down] = up_value
        values[hit & down] = down_value
        return values
