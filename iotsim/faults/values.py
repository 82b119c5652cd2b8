"""Faults on values: what a device reports is not what was there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from iotsim.errors import BadValue
from iotsim.faults.base import Active, Draft, Fault, Floats, Mask, Span, is_number
from iotsim.faults.cells import differ, numbers, objects, present, put, put_objects
from iotsim.faults.parameters import field_names, flag, keep, ramp, share, whole
from iotsim.readings import Ints
from iotsim.signals.base import number
from iotsim.units import US_PER_SECOND, Duration

Names: TypeAlias = "str | Sequence[str] | None"

TIMES_MAX = 10**9
_ON_ITS_WAY = "packet_loss"


@dataclass(frozen=True, slots=True)
class Outlier(Fault):
    """A value well outside the field's own range.

    Parameters
    ----------
    value : float, optional
        Exactly this one, in the unit of the field; three spans above the field's range if not
        given.
    times : int, optional
        Only in the first so many readings of each device; in all of them if not given.
    waits : bool
        Whether `times` counts from the first reading that leaves, so not while a device is silent
        or has no link, and it is over with the last of them. What is lost on its way has left.
    probability : float
        How likely each of these readings is changed, 0 to 1.
    ramp : duration, optional
        How long the probability takes to rise from 0.
    field : str or list of str, optional
        All fields that are numbers if not given.
    """

    name: ClassVar[str] = "outlier"
    numeric: ClassVar[bool] = True
    value: float | None = None
    times: int | None = None
    waits: bool = False
    probability: float = 1.0
    ramp: Duration | None = None
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, value=None if self.value is None else number("value", self.value),
             times=None if self.times is None else whole("times", self.times, 1, TIMES_MAX),
             waits=flag("waits", self.waits), field=field_names(self.field),
             probability=share("probability", self.probability), ramp=ramp(self.ramp))
        if self.waits and self.times is None:
            raise BadValue("waits", True, "is about the first readings",
                           "Say how many: times=1.")

    @property
    def last(self) -> bool:
        """Whether it comes after all others: it goes by which readings leave."""
        return self.waits

    def change(self, draft: Draft, active: Active) -> Mask:
        """Put the value in the place of the one that was measured."""
        wanted = active.chosen(self.probability)
        if self.times is not None:
            place = self._place(draft, active, new=True)
            wanted &= (place >= 0) & (place < self.times)
        hit = _nothing(active)
        for name in _numeric(draft, self.field):
            old, is_int = numbers(draft.columns[name], active.rows)
            if self.value is None:
                new = _far(draft, name, old, up=np.ones(len(old), dtype=np.bool_))
                hit |= put(draft, name, active.rows, new, wanted & ~np.isnan(old), is_int)
            else:
                new = np.full(len(old), self.value)
                exact = is_int & self.value.is_integer()
                hit |= put(draft, name, active.rows, new, wanted, exact)
        return hit

    def spent(self, draft: Draft, active: Active) -> Mask | None:
        """Return which rows come after the first so many: where those are all that was meant."""
        if self.times is None or not self.waits:
            return None
        return np.asarray(self._place(draft, active, new=False) >= self.times)

    def _place(self, draft: Draft, active: Active, *, new: bool) -> Ints:
        # How many ticks after the first that counts; -1 where none has come yet.
        n = draft.n[active.rows]
        if not self.waits:
            return np.asarray(n - active.remembered("first tick", n))
        if new:
            gone = draft.withheld[active.rows]
            left = gone == 0
            if _ON_ITS_WAY in draft.causes:
                left |= gone == draft.causes.index(_ON_ITS_WAY)
            active.take(left).remembered("first tick", n[left])
        first, seen = active.memory["first tick"]
        return np.where(seen[active.member], n - first[active.member], -1)


@dataclass(frozen=True, slots=True)
class DataCorruption(Fault):
    """Each value by itself becomes null, zero or a spike, one third each.

    Parameters
    ----------
    corruption_rate : float
        How likely each value is corrupted, 0 to 1.
    ramp : duration, optional
        How long the rate takes to rise from 0.
    field : str or list of str, optional
        All fields that are numbers if not given.
    """

    name: ClassVar[str] = "data_corruption"
    numeric: ClassVar[bool] = True
    corruption_rate: float = 1.0
    ramp: Duration | None = None
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, corruption_rate=share("corruption_rate", self.corruption_rate),
             ramp=ramp(self.ramp), field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Corrupt values, drawn for each field on its own."""
        hit = _nothing(active)
        for name in _numeric(draft, self.field):
            wanted = active.chosen(self.corruption_rate, f"chance of {name}")
            old, is_int = numbers(draft.columns[name], active.rows)
            sixth = np.floor(active.uniform(f"kind of {name}") * 6.0)
            new = _far(draft, name, old, up=sixth == 5.0)
            new[sixth < 4.0] = 0.0
            null = wanted & (sixth < 2.0)
            new[null] = np.nan
            hit |= put(draft, name, active.rows, new, wanted & ~np.isnan(old), is_int)
        return hit


@dataclass(frozen=True, slots=True)
class Stuck(Fault):
    """The value of the first reading in the window, again and again.

    Parameters
    ----------
    field : str or list of str, optional
        Of any kind; all fields that are numbers if not given.
    """

    name: ClassVar[str] = "stuck"
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Put each device's first value in the place of all that follow."""
        hit = _nothing(active)
        for name in draft.numeric(self.field):
            column = draft.columns[name]
            there = present(column, active.rows)
            found = active.take(there)
            held = np.empty(len(found), dtype=object)
            held[:] = objects(column, found.rows)
            put_objects(draft, name, found.rows, found.remembered(name, held).tolist())
            hit[there] |= differ(column, draft.columns[name], found.rows)
        return hit


@dataclass(frozen=True, slots=True)
class Drift(Fault):
    """The value moves away from the truth, further with every second.

    Parameters
    ----------
    rate_per_sec : float
        How far in a second, in the unit of the field.
    field : str or list of str, optional
        All fields that are numbers if not given.
    """

    name: ClassVar[str] = "drift"
    numeric: ClassVar[bool] = True
    rate_per_sec: float
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, rate_per_sec=number("rate_per_sec", self.rate_per_sec),
             field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Add the rate times the seconds since the beginning."""
        by = self.rate_per_sec * (active.since_us / US_PER_SECOND)
        return _moved(draft, active, self.field, by)


@dataclass(frozen=True, slots=True)
class Noise(Fault):
    """A normal error on top of the value, drawn for each field on its own.

    Parameters
    ----------
    stddev : float
        In the unit of the field, at least 0.
    probability : float
        How likely each reading gets one, 0 to 1.
    ramp : duration, optional
        How long the standard deviation takes to rise from 0.
    field : str or list of str, optional
        All fields that are numbers if not given.
    """

    name: ClassVar[str] = "noise"
    numeric: ClassVar[bool] = True
    stddev: float
    probability: float = 1.0
    ramp: Duration | None = None
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, stddev=number("stddev", self.stddev, least=0),
             probability=share("probability", self.probability), ramp=ramp(self.ramp),
             field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Add standard deviation times a normal draw."""
        wanted, strength = active.drawn(self.probability), active.strength(self.stddev)
        hit = _nothing(active)
        for name in _numeric(draft, self.field):
            by = np.where(wanted, strength * active.normal(f"noise of {name}"), 0.0)
            hit |= _move(draft, active, name, by)
        return hit


@dataclass(frozen=True, slots=True)
class Offset(Fault):
    """The value is off by a constant.

    Parameters
    ----------
    by : float
        In the unit of the field.
    probability : float
        How likely each reading is off, 0 to 1.
    ramp : duration, optional
        How long the offset takes to rise from 0.
    field : str or list of str, optional
        All fields that are numbers if not given.
    """

    name: ClassVar[str] = "offset"
    numeric: ClassVar[bool] = True
    by: float
    probability: float = 1.0
    ramp: Duration | None = None
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, by=number("by", self.by), probability=share("probability", self.probability),
             ramp=ramp(self.ramp), field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Add the constant."""
        wanted = active.drawn(self.probability)
        by = np.where(wanted, active.strength(self.by), 0.0)
        return _moved(draft, active, self.field, by)


@dataclass(frozen=True, slots=True)
class Dropout(Fault):
    """A reading that is not made, or fields of it that are null.

    Parameters
    ----------
    probability : float
        How likely each reading is missing, 0 to 1.
    ramp : duration, optional
        How long the probability takes to rise from 0.
    field : str or list of str, optional
        These become null; the whole reading is withheld if not given.
    """

    name: ClassVar[str] = "dropout"
    probability: float = 1.0
    ramp: Duration | None = None
    field: Names = None

    def __post_init__(self) -> None:
        keep(self, probability=share("probability", self.probability), ramp=ramp(self.ramp),
             field=field_names(self.field))

    def change(self, draft: Draft, active: Active) -> Mask:
        """Withhold readings, or null fields."""
        wanted = active.chosen(self.probability)
        if self.field is None:
            return draft.lost(active, wanted, self.name)
        hit = _nothing(active)
        for name in draft.numeric(self.field):
            column = draft.columns[name]
            there = wanted & present(column, active.rows)
            rows = active.rows[there]
            if len(rows):
                put_objects(draft, name, rows, [None] * len(rows))
                hit[there] |= differ(column, draft.columns[name], rows)
        return hit


@dataclass(frozen=True, slots=True)
class BatteryDrain(Fault):
    """The published `battery` falls faster; what is gone stays gone after the end.

    Parameters
    ----------
    drain_multiplier : float
        How many times the field's own drift, above 0.
    """

    name: ClassVar[str] = "battery_drain"
    lingers: ClassVar[bool] = True
    numeric: ClassVar[bool] = True
    drain_multiplier: float = 10.0

    def __post_init__(self) -> None:
        keep(self, drain_multiplier=number("drain_multiplier", self.drain_multiplier, above=0))

    @property
    def named(self) -> tuple[str, ...]:
        """Always the one field."""
        return ("battery",)

    def change(self, draft: Draft, active: Active) -> Mask:
        """Add what the drift would have done besides, had it been that much stronger."""
        known = active.memory.get("drift_per_s")
        if known is None or not _numeric(draft, self.named):
            return _nothing(active)
        drift_per_s = known[active.member]
        active_us = active.since_us + np.minimum(active.left_us, 0)
        by = (self.drain_multiplier - 1.0) * drift_per_s * (active_us / US_PER_SECOND)
        bounds = draft.spans.get("battery", (0.0, np.inf))
        return _move(draft, active, "battery", by, bounds)


def _nothing(active: Active) -> Mask:
    return np.zeros(len(active), dtype=np.bool_)


def _numeric(draft: Draft, names: Names) -> list[str]:
    return [name for name in draft.numeric(names) if is_number(draft.columns[name])]


def _moved(draft: Draft, active: Active, names: Names, by: Floats) -> Mask:
    hit = _nothing(active)
    for name in _numeric(draft, names):
        hit |= _move(draft, active, name, by)
    return hit


def _move(draft: Draft, active: Active, name: str, by: Floats, bounds: Span | None = None) -> Mask:
    # A value that was outside the bounds before stays where it was: only the move is bounded.
    column = draft.columns[name]
    old, is_int = numbers(column, active.rows)
    with np.errstate(over="ignore", invalid="ignore"):
        new = old + by
    if bounds is not None:
        new = np.clip(new, np.minimum(old, bounds[0]), np.maximum(old, bounds[1]))
    wanted = (by != 0.0) & ~np.isnan(by) & ~np.isnan(old)
    return put(draft, name, active.rows, _resolved(draft, name, new), wanted, is_int)


def _resolved(draft: Draft, name: str, values: Floats) -> Floats:
    resolution = draft.resolutions.get(name)
    if resolution is None or draft.columns[name].kind != "float":
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return resolution.many(values)


def _far(draft: Draft, name: str, old: Floats, up: Mask) -> Floats:
    # Well outside: three spans beyond the end; without a span, ten times the value and more.
    span = draft.spans.get(name)
    with np.errstate(over="ignore", invalid="ignore"):
        if span is None:
            reach = 10.0 * (np.abs(old) + 1.0)
            return _resolved(draft, name, np.where(up, old + reach, old - reach))
        low, high = span
        wide = high - low
        above, below = (3.0 * wide if wide > 0 else 10.0 * (abs(end) + 1.0) for end in span[::-1])
        return _resolved(draft, name, np.where(up, high + above, low - below))
