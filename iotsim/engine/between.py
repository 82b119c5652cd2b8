"""Readings between ticks: what the fault `rate` adds.

Reading (n, j) is j/factor of an interval after tick n and has streams of its own: draws are made
for a device that is tick n of that device, so that no other reading changes. What walks (brownian,
markov) moves on the grid only; between ticks its value stands. Readings are made together with
their tick, wait until their time has come, and fall away if the fault has been cleared by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.faults.base import NEVER_US, Window
from iotsim.profiles import Profile
from iotsim.readings import Column, Group, Ints, Readings
from iotsim.seeding import Words, combine_many, fnv1a, shared_key
from iotsim.signals.base import Site, Steps, Values

Numbered: TypeAlias = "tuple[Readings, Ints, Ints, Ints]"  # with at_us, slots, subs
_SUB = fnv1a("\0between")


def numbered(readings: Readings, at_us: Ints, slots: Ints) -> Numbered:
    """Return readings of the grid with when, who, and 0 for each."""
    return readings, at_us, slots, np.zeros(len(readings), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    readings: Readings
    at_us: Ints
    tick_us: Ints
    slots: Ints
    subs: Ints

    def take(self, mask: npt.NDArray[np.bool_]) -> _Waiting:
        return _Waiting(self.readings.take(mask), self.at_us[mask], self.tick_us[mask],
                        self.slots[mask], self.subs[mask])


class Between:
    """The readings between ticks of one block.

    Parameters
    ----------
    group : Group
    profile : Profile
    seed : int
    """

    def __init__(self, group: Group, profile: Profile, seed: int) -> None:
        self._group, self._profile, self._seed = group, profile, seed
        self._waiting: list[_Waiting] = []

    @property
    def next_us(self) -> int:
        """When the next of them is due."""
        return min((int(wait.at_us.min()) for wait in self._waiting), default=NEVER_US)

    def put(
        self, readings: Readings, at_us: Ints, slots: Ints, elapsed_us: Ints, keys: Words,
        windows: Sequence[Window],
    ) -> None:
        """Make the readings that follow these of the grid, up to the next tick of each device."""
        factors = np.ones(len(readings), dtype=np.int64)
        for window in windows:
            if window.name == "rate":
                rows = _reached(window, slots, at_us, at_us)
                factor = int(getattr(window.fault, "factor", 1))
                factors[rows] = np.maximum(factors[rows], factor)
        for j in range(1, int(factors.max(initial=1))):
            rows = np.flatnonzero(factors > j)
            later_us = j * self._profile.interval_us // factors[rows]
            made = self._step(readings.take(rows), j, at_us[rows] + later_us,
                              elapsed_us[rows] + later_us, keys[rows])
            self._waiting.append(_Waiting(made, at_us[rows] + later_us, at_us[rows], slots[rows],
                                          np.full(len(rows), j, dtype=np.int64)))

    def _step(
        self, readings: Readings, j: int, at_us: Ints, elapsed_us: Ints, keys: Words
    ) -> Readings:
        rows = len(readings)
        values: dict[str, Values] = {}
        steps = Steps(j, 1, slice(0, rows), at_us[None, :], values, self._profile.interval_us,
                      np.full((1, rows), j, dtype=np.int64), elapsed_us[None, :])
        columns: dict[str, Column] = {}
        for field in self._profile.fields:
            column = readings.columns[field.name]
            if not field.signal.walks:
                parents = keys
                if field.shared is not None:
                    value = self._group.labels[field.shared]
                    shared = shared_key(self._seed, field.shared, value)
                    parents = np.full(rows, shared, dtype=np.uint64)
                own = combine_many(combine_many(parents, _SUB), readings.seq.view(np.uint64))
                site = Site(own, field.name, self._profile.interval_us)
                made = np.broadcast_to(field.signal.block(site).step(steps), (1, rows))[0].copy()
                if field.kind == "float":
                    resolution = field.resolution
                    made = made + 0.0 if resolution is None else resolution.many(made)
                column = Column(field.kind, made, field.signal.categories)
            columns[field.name] = column
            values[field.name] = column.values[None, :]
        return Readings(readings.group, readings.device, readings.seq, at_us, columns)

    def due(self, until_us: int, windows: Sequence[Window]) -> list[Numbered]:
        """Take those that are due before an instant and whose fault still runs."""
        found, left = [], []
        for waiting in self._waiting:
            now = waiting.at_us < until_us
            if now.any():
                ready = waiting.take(now)
                alive = np.zeros(len(ready.at_us), dtype=np.bool_)
                for window in windows:
                    if window.name == "rate" and getattr(window.fault, "factor", 1) > 1:
                        alive[_reached(window, ready.slots, ready.tick_us, ready.at_us)] = True
                ready = ready.take(alive)
                found.append((ready.readings, ready.at_us, ready.slots, ready.subs))
            if not now.all():
                left.append(waiting.take(~now))
        self._waiting = left
        return found

    def of_those(
        self, slots: Ints, group: Group, profile: Profile, members: npt.NDArray[np.int32]
    ) -> Between:
        """Return the part of some devices, in the group where they are from now on."""
        made = Between(group, profile, self._seed)
        order = np.argsort(slots)
        for waiting in self._waiting:
            part = waiting.take(np.isin(waiting.slots, slots))
            if len(part.slots):
                place = order[np.searchsorted(slots, part.slots, sorter=order)]
                old = part.readings
                moved = Readings(group, members[place], old.seq, old.time_us, old.columns)
                made._waiting.append(
                    _Waiting(moved, part.at_us, part.tick_us, part.slots, part.subs))
        return made

    @staticmethod
    def in_order(parts: Iterable[Numbered]) -> list[Numbered]:
        """Return parts as one, ordered by time; a device's readings are then in order."""
        some = [part for part in parts if len(part[0])]
        if len(some) < 2:
            return some
        first = some[0][0]
        columns = {
            name: Column(column.kind,
                         np.concatenate([part[0].columns[name].values for part in some]),
                         column.categories)
            for name, column in first.columns.items()
        }
        joined = Readings(
            first.group, np.concatenate([part[0].device for part in some]),
            np.concatenate([part[0].seq for part in some]),
            np.concatenate([part[0].time_us for part in some]), columns,
        )
        at_us, slots, subs = (np.concatenate([part[i] for part in some]) for i in (1, 2, 3))
        order = np.lexsort((subs, at_us))
        return [(joined.take(order), at_us[order], slots[order], subs[order])]


def _reached(window: Window, slots: Ints, tick_us: Ints, at_us: Ints) -> Ints:
    member = window.members(slots)
    within = (member >= 0) & (tick_us >= window.begin_us)
    rows = np.flatnonzero(within)
    return np.asarray(rows[at_us[rows] < window.ends_us[member[rows]]])
