"""A regular swing between two bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from iotsim.signals.base import Floats, Signal, Single, Site, Source, Span, Steps, Tick, register
from iotsim.signals.uniform import bounds
from iotsim.signals.waves import sine, sine_many
from iotsim.units import duration_text, duration_us


@register("sine_wave")
@dataclass(frozen=True, slots=True)
class Sine(Signal):
    """A sine between two bounds: at its middle and rising on the first reading.

    Parameters
    ----------
    min, max : float
    period : duration
        From one peak to the next.
    """

    min: Any
    max: Any
    period: Any = "1m"

    def __post_init__(self) -> None:
        bounds(self.min, self.max)
        object.__setattr__(self, "period", duration_text(duration_us(self.period, "period")))

    @property
    def span(self) -> Span:
        """The bounds."""
        return bounds(self.min, self.max)

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Sine(*self._law)

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        low, high, middle, swing, period_us = self._law
        interval_us = site.interval_us

        def value(tick: Tick) -> float:
            x = sine(tick.n * interval_us, period_us) * swing + middle
            return low if x < low else high if x > high else x

        return value

    @property
    def _law(self) -> tuple[float, float, float, float, int]:
        low, high = bounds(self.min, self.max)
        middle, swing = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
        return low, high, middle, swing, duration_us(self.period, "period")


@dataclass(slots=True)
class _Sine:
    low: float
    high: float
    middle: float
    swing: float
    period_us: int

    def step(self, steps: Steps) -> Floats:
        values = sine_many(steps.elapsed_us, self.period_us)  # on one grid the same for all
        values *= self.swing
        values += self.middle
        np.maximum(values, self.low, out=values)
        return np.minimum(values, self.high, out=values)
