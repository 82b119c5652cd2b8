"""White Gaussian noise around a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iotsim.normals import normal, normal_many
from iotsim.seeding import Words, draws, squares64
from iotsim.signals.base import (
    SPAN_STDDEVS,
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


@register("gaussian")
@dataclass(frozen=True, slots=True)
class Gaussian(Signal):
    """Independent normal values: mean + stddev · N.

    Parameters
    ----------
    mean, stddev : float
        In the unit of the field; `stddev` ≥ 0.
    """

    mean: Any
    stddev: Any

    def __post_init__(self) -> None:
        number("mean", self.mean)
        number("stddev", self.stddev, least=0)

    @property
    def span(self) -> Span:
        """Four standard deviations around the mean."""
        reach = SPAN_STDDEVS * float(self.stddev)
        return float(self.mean) - reach, float(self.mean) + reach

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Gaussian(float(self.mean), float(self.stddev), site.keys(self.version))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        mean, stddev, key = float(self.mean), float(self.stddev), site.key(self.version)

        def value(tick: Tick) -> float:
            return mean + stddev * normal(squares64(tick.n, key))

        return value


@dataclass(slots=True)
class _Gaussian:
    mean: float
    stddev: float
    keys: Words

    def step(self, steps: Steps) -> Floats:
        values = normal_many(draws(self.keys[steps.devices], steps.counters))
        values *= self.stddev
        values += self.mean
        return values
