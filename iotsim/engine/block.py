"""Devices of one profile that step together: one numpy call for many devices and ticks.

A block holds its devices in order of their phase. The readings due in a window [t0, t1) are then
at most three rectangles (consecutive devices × consecutive ticks), whatever the window; offline
windows are whole intervals and give one. Readings do not depend on how time was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from iotsim.engine.grid import jitter_keys, phases_us, site_of
from iotsim.profiles import Field, Profile
from iotsim.readings import Column, Group, Ints, Readings
from iotsim.seeding import Words, device_keys, draws, scaled
from iotsim.signals.base import Steps, Values

CELLS = 16_384  # rows computed at a time: a column of that many stays in the processor's cache


@dataclass(frozen=True, slots=True)
class _Rectangle:
    low: int
    high: int
    first: int
    last: int


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
    """

    def __init__(
        self,
        group: Group,
        profile: Profile,
        seed: int,
        start_us: int,
        members: npt.NDArray[np.int32] | None = None,
    ) -> None:
        if members is None:
            members = np.arange(len(group), dtype=np.int32)
        keys = device_keys(seed, [group.ids[i] for i in members.tolist()])
        phase_us = phases_us(profile.phase_us, profile.interval_us, keys)
        order = np.argsort(phase_us, kind="stable")
        self.group, self.profile, self.start_us = group, profile, start_us
        self.time_us = start_us
        self._keys = keys[order]
        self._phase_us = phase_us[order]
        self._members = members[order]
        self._sources = [
            (field, field.signal.block(site_of(field, profile, group, seed, self._keys)))
            for field in profile.fields
        ]
        self._jitter_keys = jitter_keys(self._keys)
        self._tiled: tuple[tuple[int, int, int], npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def first_member(self) -> int:
        """One of the block's devices; they all go the same ways."""
        return int(self._members[0])

    @property
    def next_us(self) -> int:
        """When the next reading of the block is due."""
        interval_us = self.profile.interval_us
        ticks, rest = divmod(self.time_us - self.start_us, interval_us)
        i = int(np.searchsorted(self._phase_us, rest))
        if i == len(self):
            i, ticks = 0, ticks + 1
        return self.start_us + ticks * interval_us + int(self._phase_us[i])

    def advance(self, until_us: int) -> Iterator[Readings]:
        """Yield the readings due before an instant, in pieces of bounded size.

        Everything must be taken before the next call.
        """
        interval_us = self.profile.interval_us
        width = max(1, CELLS // len(self))
        while self.time_us < until_us:
            whole = (self.time_us - self.start_us) // interval_us
            stop_us = min(until_us, self.start_us + (whole + width) * interval_us)
            begin_us, self.time_us = self.time_us, stop_us
            for rectangle in self._rectangles(begin_us, stop_us):
                yield self._step(rectangle)

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

    def _step(self, area: _Rectangle) -> Readings:
        devices = slice(area.low, area.high)
        ticks, wide = area.last - area.first, area.high - area.low
        ns = np.arange(area.first, area.last, dtype=np.int64)[:, None]
        grid_us = ns * self.profile.interval_us + (self._phase_us[devices] + self.start_us)
        values: dict[str, Values] = {}
        steps = Steps(area.first, ticks, devices, grid_us, values)
        for field, source in self._sources:
            values[field.name] = _rounded(field, source.step(steps), steps.shape)
        columns = {
            field.name: Column(
                field.kind, values[field.name].reshape(-1), field.signal.categories
            )
            for field, _ in self._sources
        }
        return Readings(
            group=self.group,
            device=self._devices(area.low, area.high, ticks),
            seq=np.repeat(ns[:, 0], wide),
            time_us=self._published_us(grid_us, devices, steps.counters).reshape(-1),
            columns=columns,
            grid=(ticks, wide),
        )

    def _devices(self, low: int, high: int, ticks: int) -> npt.NDArray[np.int32]:
        # Whole windows have the same rectangle again and again: they share one array.
        shape = low, high, ticks
        if self._tiled is None or self._tiled[0] != shape:
            made = np.tile(self._members[low:high], ticks)
            made.setflags(write=False)
            self._tiled = shape, made
        return self._tiled[1]

    def _published_us(self, grid_us: Ints, devices: slice, counters: Words) -> Ints:
        if not self.profile.jitter_us:
            return grid_us
        words = draws(self._jitter_keys[devices], counters)
        return grid_us + scaled(words, self.profile.jitter_us)


def _rounded(field: Field, values: Values, shape: tuple[int, int]) -> Values:
    if values.shape != shape:
        values = np.broadcast_to(values, shape).copy()
    if field.kind != "float":
        return values
    if field.resolution is not None:
        return field.resolution.many(values)
    values += 0.0  # −0 becomes 0: one value on the wire
    return values
