"""Devices of one profile that step together: one numpy call for many devices and ticks.

A block holds its devices in order of their phase. The readings due in a window [t0, t1) are then
at most three rectangles (consecutive devices × consecutive ticks), whatever the window; offline
windows are whole intervals and give one. Readings do not depend on how time was cut.

Where something is done to some of its devices that changes how they step (another interval, other
parameters, another group, the end), the block splits at that instant: those that go on as before
and those that do not go on as blocks of their own, with the state they had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from iotsim.engine.between import Between, numbered
from iotsim.engine.dressing import Facts, dressed
from iotsim.engine.grid import (
    Origin,
    grid_keys,
    jitter_keys,
    new_grid,
    phases_us,
    site_of,
)
from iotsim.engine.population import within
from iotsim.faults.base import NEVER_US, Window
from iotsim.profiles import Field, Profile
from iotsim.readings import Column, Group, Ints, Readings
from iotsim.seeding import Words, device_keys, draws, scaled
from iotsim.signals.base import Source, Steps, Values, kept, resumed

WINDOWS_KEPT = 16
CELLS = 16_384  # rows computed at a time: a column of that many stays in the processor's cache


@dataclass(frozen=True, slots=True)
class _Rectangle:
    low: int
    high: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What becomes of some devices at an instant.

    Attributes
    ----------
    at_us : int
    slots : callable () -> int64 array, ascending
        Which devices; asked when the time has come.
    profile : Profile or None
        What they run from then on; None: what they ran.
    group : Group or None
        Where they are from then on, its devices in order of `slots_of_group`.
    ends : bool
        Whether they are gone.
    """

    at_us: int
    slots: Callable[[], Ints]
    profile: Profile | None = None
    group: Group | None = None
    slots_of_group: Ints | None = None
    ends: bool = False

    def like(self, other: Split) -> bool:
        """Return whether the same becomes of its devices as of those of another one."""
        return (self.profile is other.profile and self.group is other.group
                and self.ends == other.ends)


class Block:
    """Devices of one group, stepped by numpy.

    Parameters
    ----------
    group : Group
    profile : Profile
    seed : int
    start_us : int
        When the devices were added.
    members : int32 array, optional
        Which devices of the group; all if not given.
    slots : int64 array, optional
        The numbers in the fleet of all devices of the group.

    Attributes
    ----------
    time_us : int
        Everything before it has been stepped; `NEVER_US` if the block has given way to others.
    windows : list of Window
        The faults that can reach its devices, in order of injection.
    splits : list of Split
        In order of time.
    """

    def __init__(
        self,
        group: Group,
        profile: Profile,
        seed: int,
        start_us: int,
        members: npt.NDArray[np.int32] | None = None,
        slots: Ints | None = None,
    ) -> None:
        if members is None:
            members = np.arange(len(group), dtype=np.int32)
        keys = device_keys(seed, [group.ids[i] for i in members.tolist()])
        phase_us = phases_us(profile.phase_us, profile.interval_us,
                             grid_keys(seed, group, members, keys))
        order = np.argsort(phase_us, kind="stable")
        members = members[order]
        own = members.astype(np.int64) if slots is None else slots[members]
        self.time_us = start_us
        self.windows: list[Window] = []
        self.splits: list[Split] = []
        self.forked: Callable[[Block], None] = _nobody
        self._fill(group, profile, seed, start_us, members, own, keys[order], phase_us[order], None)

    def _fill(
        self, group: Group, profile: Profile, seed: int, start_us: int,
        members: npt.NDArray[np.int32], slots: Ints, keys: Words, phase_us: Ints,
        origin: Origin | None,
    ) -> None:
        self.group, self.profile, self.seed, self.start_us = group, profile, seed, start_us
        self.slots = slots
        self._members, self._keys, self._phase_us, self._origin = members, keys, phase_us, origin
        self._sources: list[tuple[Field, Source]] = [
            (field, field.signal.block(site_of(field, profile, group, seed, keys)))
            for field in profile.fields
        ]
        self._jitter_keys = jitter_keys(keys)
        self._tiled: dict[tuple[int, int, int], tuple[npt.NDArray[np.int32], Ints]] = {}
        self._facts: Facts | None = None
        self._between: Between | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def retired(self) -> bool:
        """Whether it has given way to other blocks."""
        return self.time_us == NEVER_US

    @property
    def gives_way(self) -> bool:
        """Whether no reading comes from it any more: it has split, or is about to."""
        return self.retired or bool(self.splits and self.splits[0].at_us <= self.time_us)

    @property
    def next_us(self) -> int:
        """When the next reading of the block is due, or may be: where it splits, nobody knows."""
        interval_us = self.profile.interval_us
        ticks, rest = divmod(self.time_us - self.start_us, interval_us)
        i = int(np.searchsorted(self._phase_us, rest))
        if i == len(self):
            i, ticks = 0, ticks + 1
        due_us = self.start_us + ticks * interval_us + int(self._phase_us[i])
        if self.splits:
            due_us = min(due_us, max(self.time_us, self.splits[0].at_us))
        between = self._between
        return due_us if between is None else min(due_us, between.next_us)

    def advance(self, until_us: int) -> Iterator[Readings]:
        """Yield the readings due before an instant, in pieces of bounded size.

        Everything must be taken before the next call.
        """
        interval_us = self.profile.interval_us
        width = max(1, CELLS // len(self))
        while self.time_us < until_us:
            stop_us = until_us
            if self.splits:
                if self.splits[0].at_us <= self.time_us:
                    self._split()
                    continue
                stop_us = min(until_us, self.splits[0].at_us)
            whole = (self.time_us - self.start_us) // interval_us
            stop_us = min(stop_us, self.start_us + (whole + width) * interval_us)
            begin_us, self.time_us = self.time_us, stop_us
            if len(self.windows) > WINDOWS_KEPT:  # those that are over reach nothing any more
                self.windows = [one for one in self.windows if one.reaches(begin_us, NEVER_US)]
            if self._needs_between():
                yield from self._with_between(begin_us, stop_us)
                continue
            for rectangle in self._rectangles(begin_us, stop_us):
                readings, at_us, _ = self._step(rectangle)
                yield self._dressed(readings, at_us, rectangle)

    def _rectangles(self, begin_us: int, stop_us: int) -> Iterator[_Rectangle]:
        interval_us = self.profile.interval_us
        first, first_rest = divmod(begin_us - self.start_us, interval_us)
        last, last_rest = divmod(stop_us - self.start_us, interval_us)
        # A device whose phase is before the rest has had one tick more by then.
        i = int(np.searchsorted(self._phase_us, first_rest))
        j = int(np.searchsorted(self._phase_us, last_rest))
        edges = sorted((0, i, j, len(self)))
        for low, high in pairwise(edges):
            begin, end = first + (low < i), last + (low < j)
            if low < high and begin < end:
                yield _Rectangle(low, high, begin, end)

    def _step(self, area: _Rectangle) -> tuple[Readings, Ints, Steps]:
        devices = slice(area.low, area.high)
        ticks, wide = area.last - area.first, area.high - area.low
        ns = np.arange(area.first, area.last, dtype=np.int64)[:, None]
        grid_us = ns * self.profile.interval_us + (self._phase_us[devices] + self.start_us)
        numbers = elapsed = None
        if self._origin is not None:
            numbers = ns + self._origin.numbers[devices]
            elapsed = ns * self.profile.interval_us + self._origin.elapsed_us[devices]
        values: dict[str, Values] = {}
        steps = Steps(area.first, ticks, devices, grid_us, values, self.profile.interval_us,
                      numbers, elapsed)
        for field, source in self._sources:
            values[field.name] = _rounded(field, source.step(steps), steps.shape)
        columns = {
            field.name: Column(
                field.kind, values[field.name].reshape(-1), field.signal.categories
            )
            for field, _ in self._sources
        }
        readings = Readings(
            group=self.group,
            device=self._devices(area.low, area.high, ticks)[0],
            seq=np.repeat(ns[:, 0], wide) if numbers is None else numbers.reshape(-1),
            time_us=self._published_us(grid_us, devices, steps.counters).reshape(-1),
            columns=columns,
            grid=(ticks, wide),
        )
        return readings, grid_us, steps

    def _dressed(self, readings: Readings, at_us: Ints, area: _Rectangle) -> Readings:
        if not self.windows or not self._near(int(at_us.min()), int(at_us.max())):
            return readings
        slots = self._devices(area.low, area.high, area.last - area.first)[1]
        return dressed(readings, at_us.reshape(-1), slots, None, self.windows, self.facts)

    def _near(self, first_us: int, last_us: int) -> bool:
        return any(window.reaches(first_us, last_us) for window in self.windows)

    @property
    def facts(self) -> Facts:
        """What faults must know of its fields."""
        if self._facts is None:
            self._facts = Facts.of(self.profile)
        return self._facts

    def _devices(self, low: int, high: int, ticks: int) -> tuple[npt.NDArray[np.int32], Ints]:
        # Whole windows have the same rectangle again and again: they share their arrays.
        shape = low, high, ticks
        if shape not in self._tiled:
            self._tiled.clear()
            made = (np.tile(self._members[low:high], ticks),
                    np.tile(self.slots[low:high], ticks))
            for array in made:
                array.setflags(write=False)
            self._tiled[shape] = made
        return self._tiled[shape]

    def _published_us(self, grid_us: Ints, devices: slice, counters: Words) -> Ints:
        if not self.profile.jitter_us:
            return grid_us
        words = draws(self._jitter_keys[devices], counters)
        return grid_us + scaled(words, self.profile.jitter_us)

    # -- readings between ticks -----------------------------------------------------------------

    def _needs_between(self) -> bool:
        if self._between is not None:
            return True
        rated = [window for window in self.windows if window.name == "rate"]
        if rated:
            self._between = Between(self.group, self.profile, self.seed)
        return bool(rated)

    def _with_between(self, begin_us: int, stop_us: int) -> Iterator[Readings]:
        assert self._between is not None
        found = []
        for area in self._rectangles(begin_us, stop_us):
            readings, at_us, steps = self._step(area)
            slots = self._devices(area.low, area.high, area.last - area.first)[1]
            flat_us = at_us.reshape(-1)
            found.append(numbered(readings, flat_us, slots))
            elapsed = np.broadcast_to(steps.elapsed_us, at_us.shape).reshape(-1)
            keys = np.tile(self._keys[area.low:area.high], area.last - area.first)
            self._between.put(readings, flat_us, slots, elapsed, keys, self.windows)
        found += self._between.due(stop_us, self.windows)
        for readings, at_us, slots, subs in Between.in_order(found):
            yield dressed(readings, at_us, slots, subs, self.windows, self.facts)

    # -- splitting ------------------------------------------------------------------------------

    def split_later(self, split: Split) -> None:
        """Have a split happen at its time."""
        self.splits.append(split)
        self.splits.sort(key=lambda one: one.at_us)

    def _split(self) -> None:
        # All that is due now at once, as far as each device is meant once; those that go on
        # alike stay together.
        kinds: list[Split] = []
        kind_of = np.zeros(len(self), dtype=np.int64)  # 0: goes on as before
        while self.splits and self.splits[0].at_us <= self.time_us:
            split = self.splits[0]
            goes = within(self.slots, split.slots())
            if kind_of[goes].any():
                break  # what comes of them goes on from there
            if goes.any():
                kind = next((i for i, one in enumerate(kinds) if one.like(split)), len(kinds))
                if kind == len(kinds):
                    kinds.append(split)
                kind_of[goes] = kind + 1
            self.splits.pop(0)
        if not kinds:
            return
        others = np.flatnonzero(kind_of == 0)
        if len(others):
            self.forked(self._fork(others, self.profile, self.group, self._members[others]))
        for i, split in enumerate(kinds):
            if not split.ends:
                self._move(split, np.flatnonzero(kind_of == i + 1))
        self.time_us = NEVER_US

    def _move(self, split: Split, rows: Ints) -> None:
        group, members = self.group, self._members[rows]
        if split.group is not None and split.slots_of_group is not None:
            group = split.group
            members = np.searchsorted(split.slots_of_group, self.slots[rows]).astype(np.int32)
        self.forked(self._fork(rows, split.profile or self.profile, group, members))

    def _fork(
        self, rows: Ints, profile: Profile, group: Group, members: npt.NDArray[np.int32]
    ) -> Block:
        made = object.__new__(Block)
        made.time_us, made.forked = self.time_us, self.forked
        made.windows, made.splits = list(self.windows), list(self.splits)
        start_us, phase_us, origin = self.start_us, self._phase_us[rows], None
        if self._origin is not None:
            origin = self._origin.take(rows)
        if profile.interval_us != self.profile.interval_us:
            start_us, (phase_us, origin) = self.time_us, new_grid(
                self.time_us, self.start_us + phase_us, self.profile.interval_us,
                profile.interval_us, origin)
            order = np.argsort(phase_us, kind="stable")
            rows, members, phase_us = rows[order], members[order], phase_us[order]
            origin = origin.take(order)
        made._fill(group, profile, self.seed, start_us, members, self.slots[rows],
                   self._keys[rows], phase_us, origin)
        before = {field.name: (field.signal, source) for field, source in self._sources}
        for field, source in made._sources:
            signal, old = before.get(field.name, (None, None))
            if old is not None and type(signal) is type(field.signal):
                resumed(source, kept(old, rows))
        if self._between is not None and start_us == self.start_us:
            made._between = self._between.of_those(made.slots, group, profile, members)
        return made


def _nobody(block: Block) -> None:
    raise AssertionError("a block split that nobody looks after")


def _rounded(field: Field, values: Values, shape: tuple[int, int]) -> Values:
    if values.shape != shape:
        values = np.broadcast_to(values, shape).copy()
    if field.kind != "float":
        return values
    if field.resolution is not None:
        return field.resolution.many(values)
    values += 0.0  # −0 becomes 0: one value on the wire
    return values


