"""Readings that wait to leave their devices' links, by where they came from.

Whoever asks what is due pays for what is due, not for all that waits: a fleet that stores a day of
readings is looked at a hundred times a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iotsim.faults.base import NEVER_US
from iotsim.intake import joined, shape_of
from iotsim.readings import Ints, Readings

PARTS_MAX = 32  # of one source, before they are joined


@dataclass(slots=True, eq=False)
class Held:
    """Readings that wait.

    Attributes
    ----------
    readings : Readings
    leave_us : int64 array
        When each leaves.
    slots : int64 array
    stored : bool array
        Whether it is in its device's memory, not on a slow link.
    since_us : int
        None was taken before.
    """

    readings: Readings
    leave_us: Ints
    slots: Ints
    stored: npt.NDArray[np.bool_]
    since_us: int

    def take(self, rows: npt.NDArray[np.bool_]) -> Held:
        """Return a selection of them."""
        return Held(self.readings.take(rows), self.leave_us[rows], self.slots[rows],
                    self.stored[rows], self.since_us)


@dataclass(slots=True, eq=False)
class _Shelf:
    parts: list[Held] = field(default_factory=list)
    next_us: int = NEVER_US

    def add(self, held: Held) -> None:
        self.parts.append(held)
        self.next_us = min(self.next_us, int(held.leave_us.min()))
        if len(self.parts) > PARTS_MAX:
            self._join()

    def _join(self) -> None:
        # Large ones stay as they are until as much has come after them: each row is copied a
        # few times only, however long it waits.
        place, rows = len(self.parts), 0
        while place and len(self.parts[place - 1].readings) <= max(rows, PARTS_MAX):
            place -= 1
            rows += len(self.parts[place].readings)
        self.parts[place:] = _joined(self.parts[place:])

    def take(self, until_us: int) -> list[Held]:
        if until_us <= self.next_us:
            return []
        ready: list[Held] = []
        left: list[Held] = []
        for held in self.parts:
            now = held.leave_us < until_us
            if now.any():
                ready.append(held.take(now))
            if not now.all():
                left.append(held.take(~now))
        self.parts = left
        self.next_us = min((int(held.leave_us.min()) for held in left), default=NEVER_US)
        return ready


class Waiting:
    """What waits to leave.

    Attributes
    ----------
    rows : int
        How many readings wait.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shelves: dict[object, _Shelf] = {}

    def __contains__(self, source: object) -> bool:
        return source in self._shelves

    @property
    def sources(self) -> list[object]:
        """Where they came from, those that waited first first."""
        return list(self._shelves)

    @property
    def next_us(self) -> int:
        """When the next of them leaves."""
        return min((shelf.next_us for shelf in self._shelves.values()), default=NEVER_US)

    def next_of(self, source: object) -> int:
        """Return when the next of one source leaves."""
        return self._shelves[source].next_us

    def put(self, source: object, held: Held) -> None:
        """Let readings of a source wait."""
        if len(held.readings):
            self._shelves.setdefault(source, _Shelf()).add(held)
            self.rows += len(held.readings)

    def due(self, source: object, until_us: int) -> list[Held]:
        """Take those of a source that leave before an instant."""
        shelf = self._shelves.get(source)
        if shelf is None:
            return []
        ready = shelf.take(until_us)
        self.rows -= sum(len(held.readings) for held in ready)
        if not shelf.parts:
            del self._shelves[source]
        return ready

    def oldest(self) -> Held:
        """Take the part that has waited longest."""
        source, shelf = next(iter(self._shelves.items()))
        held = shelf.parts.pop(0)
        self.rows -= len(held.readings)
        if not shelf.parts:
            del self._shelves[source]
        return held

    def parts(self) -> Iterator[Held]:
        """Yield all that waits."""
        for shelf in self._shelves.values():
            yield from shelf.parts

    def clear(self) -> list[tuple[object, Held]]:
        """Take all of it, with where each part came from."""
        found = [(source, held) for source, shelf in self._shelves.items() for held in shelf.parts]
        self._shelves, self.rows = {}, 0
        return found


def _joined(parts: Iterable[Held]) -> Iterator[Held]:
    runs: list[list[Held]] = []
    for held in parts:
        if runs and shape_of(runs[-1][0].readings) == shape_of(held.readings):
            runs[-1].append(held)
        else:
            runs.append([held])
    for run in runs:
        if len(run) == 1:
            yield run[0]
            continue
        (readings,) = joined([held.readings for held in run])
        yield Held(readings, np.concatenate([held.leave_us for held in run]),
                   np.concatenate([held.slots for held in run]),
                   np.concatenate([held.stored for held in run]),
                   min(held.since_us for held in run))
