"""A daily swing: highest at its peak hour, lowest twelve hours later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import numpy as np

from iotsim.errors import BadValue
from iotsim.normals import normal, normal_many
from iotsim.readings import Ints
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
from iotsim.signals.waves import cosine, cosine_many

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
_ZONES = "Give an IANA name such as 'Europe/Rome'."
_QUARTER_US = 900_000_000  # every zone changes its offset on a quarter of an hour, UTC


@register("diurnal")
@dataclass(frozen=True, slots=True)
class Diurnal(Signal):
    """A daily cosine with noise: baseline + amplitude · cos(2π (hour − peak_hour) / 24) + noise.

    Parameters
    ----------
    baseline, amplitude : float
        In the unit of the field.
    peak_hour : float
        Hour of the day, 0 to 24, fractions allowed.
    noise_stddev : float
        Standard deviation of white noise on top; ≥ 0.
    timezone : str, optional
        Whose hours they are, by its IANA name; UTC if not given.
    """

    aliases: ClassVar[Mapping[str, str]] = {"stddev": "noise_stddev"}

    baseline: Any
    amplitude: Any
    peak_hour: Any = 0
    noise_stddev: Any = 0.0
    timezone: str | None = None

    def __post_init__(self) -> None:
        number("baseline", self.baseline)
        number("amplitude", self.amplitude)
        number("peak_hour", self.peak_hour, least=0, most=24)
        number("noise_stddev", self.noise_stddev, least=0)
        if self.timezone is not None:
            if not isinstance(self.timezone, str):
                raise BadValue("timezone", self.timezone, "is not text", _ZONES)
            zone(self.timezone)

    @property
    def span(self) -> Span:
        """The swing and four standard deviations of the noise."""
        reach = abs(float(self.amplitude)) + SPAN_STDDEVS * float(self.noise_stddev)
        return float(self.baseline) - reach, float(self.baseline) + reach

    def block(self, site: Site) -> Source:
        """Return the source for many devices."""
        return _Diurnal(self, self._peak_us, site.keys(self.version))

    def single(self, site: Site) -> Single:
        """Return the function for one device."""
        key, peak_us = site.key(self.version), self._peak_us
        baseline, amplitude = float(self.baseline), float(self.amplitude)
        noise = float(self.noise_stddev)

        def value(tick: Tick) -> float:
            local_us = tick.time_us + offset_us(self.timezone, tick.time_us)
            x = cosine(local_us - peak_us, DAY_US) * amplitude + baseline
            return x + noise * normal(squares64(tick.n, key)) if noise else x

        return value

    @property
    def _peak_us(self) -> int:
        return round(float(self.peak_hour) * HOUR_US)


@dataclass(slots=True)
class _Diurnal:
    law: Diurnal
    peak_us: int
    keys: Words

    def step(self, steps: Steps) -> Floats:
        law = self.law
        local_us = steps.time_us
        if law.timezone is not None:
            local_us = local_us + offsets_us(law.timezone, local_us)
        values = cosine_many(local_us - self.peak_us, DAY_US)
        values *= float(law.amplitude)
        values += float(law.baseline)
        if law.noise_stddev:
            noise = normal_many(draws(self.keys[steps.devices], steps.counters))
            noise *= float(law.noise_stddev)
            values += noise
        return values


@cache
def zone(name: str) -> ZoneInfo:
    """Return a time zone as the `tzdata` package has it, whatever the machine's own says."""
    parts = name.split("/")
    if not all(part.replace("_", "").replace("-", "").replace("+", "").isalnum() for part in parts):
        raise BadValue("timezone", name, "is not a time zone", _ZONES)
    try:
        with files("tzdata").joinpath("zoneinfo", *parts).open("rb") as stream:
            return ZoneInfo.from_file(stream, key=name)
    except (OSError, ValueError):
        raise BadValue("timezone", name, "is not a time zone", _ZONES) from None


@cache
def _offset_us(name: str, quarter: int) -> int:
    from datetime import UTC, datetime, timedelta

    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=quarter * _QUARTER_US)
    shift = moment.astimezone(zone(name)).utcoffset()
    return 0 if shift is None else shift // timedelta(microseconds=1)


def offset_us(name: str | None, time_us: int) -> int:
    """Return how far the local time of a zone is ahead of UTC at an instant."""
    return 0 if name is None else _offset_us(name, time_us // _QUARTER_US)


def offsets_us(name: str, time_us: Ints) -> Ints:
    """Return `offset_us` of every instant, same shape."""
    first, last = int(time_us.min()) // _QUARTER_US, int(time_us.max()) // _QUARTER_US
    known = np.array([_offset_us(name, q) for q in range(first, last + 1)], dtype=np.int64)
    if (known == known[0]).all():
        return np.full_like(time_us, known[0])
    return known[time_us // _QUARTER_US - first]
