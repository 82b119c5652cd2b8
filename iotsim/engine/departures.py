"""When readings leave their device's link: one rule for frames, links and the order on the wire.

A reading that a disconnect stored leaves at the first instant at which nothing keeps the device
offline any more. One on a slow link leaves as late as the faults that were active when it was taken
say, as far as they still are. Both follow from the windows as they are known: a clear only makes
one shorter, and never lets a reading leave before that clear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.engine.grid import jitter_keys
from iotsim.engine.population import Population, within
from iotsim.faults.base import NEVER_US, Draft, Fault, Window, in_order
from iotsim.readings import Ints, Readings
from iotsim.seeding import draws, scaled

Mask: TypeAlias = npt.NDArray[np.bool_]

HOLDING = ("disconnect", "latency_spike", "reorder")  # faults that let readings leave later
ROUNDS_MAX = 1_000


class Departures(NamedTuple):
    """The true time of each reading, when it leaves, and whether its device stored it."""

    time_us: Ints
    leave_us: Ints
    stored: Mask


class Grids:
    """Where readings stand on the grids of their devices, which neither jitter nor a clock moves.

    Parameters
    ----------
    population : Population
    changes : sequence of (at_us, slots, interval_us)
        The other intervals that devices were given.
    """

    def __init__(
        self, population: Population, changes: Sequence[tuple[int, Ints, int]] = ()
    ) -> None:
        self._people, self.changes = population, list(changes)

    def at_us(self, readings: Readings, slots: Ints, time_us: Ints) -> Ints:
        """Return when readings of these true times were taken: what windows go by."""
        profile = self._people.members[readings.group.index].profile
        if profile is None or not profile.jitter_us:
            return time_us
        devices, place = np.unique(slots, return_inverse=True)
        keys = jitter_keys(self._people.keys(devices))[place.reshape(-1)]
        jitter_us = scaled(draws(keys, readings.seq.view(np.uint64)), profile.jitter_us)
        marks = readings.marks
        if marks is not None and marks.sub is not None:
            jitter_us = np.where(marks.sub > 0, 0, jitter_us)
        return np.asarray(time_us - jitter_us)

    def intervals_us(self, readings: Readings, slots: Ints, at_us: Ints) -> Ints:
        """Return the interval of each reading's device at the time; 0 if nobody knows."""
        profile = self._people.members[readings.group.index].profile
        found = np.zeros(len(slots), dtype=np.int64)
        if profile is not None:
            found[:] = profile.interval_us
            for changed_us, who, interval_us in self.changes:
                found[(at_us >= changed_us) & within(slots, who)] = interval_us
        return found


def holds(window: Window) -> bool:
    """Return whether readings may leave later because of a window."""
    return window.fault.offline or window.name in HOLDING


def departures(
    readings: Readings, slots: Ints, windows: Sequence[Window], grids: Grids
) -> Departures:
    """Return when readings leave, as far as is known.

    Parameters
    ----------
    readings : Readings
    slots : int64 array
        The device of each.
    windows : sequence of Window
        Those that `holds` is true of.
    grids : Grids
    """
    marks = readings.marks
    time_us = readings.time_us
    if marks is not None and marks.shift_us is not None:
        time_us = time_us - marks.shift_us
    leave_us, stored = time_us.copy(), np.zeros(len(readings), dtype=np.bool_)
    if marks is None or marks.delay_us is None:
        return Departures(time_us, leave_us, stored)
    rows = np.flatnonzero(marks.delay_us > 0)
    if len(rows):
        late = readings.take(rows)
        delay_us, stored[rows] = _again(late, slots[rows], time_us[rows], windows, grids)
        leave_us[rows] = np.minimum(time_us[rows] + delay_us, NEVER_US)
        kept = np.flatnonzero(stored)
        leave_us[kept] = back_us(windows, slots[kept], time_us[kept])
    return Departures(time_us, leave_us, stored)


def _again(
    readings: Readings, slots: Ints, time_us: Ints, windows: Sequence[Window], grids: Grids
) -> tuple[Ints, Mask]:
    # The delays, and who stored, with the windows as they are now.
    marks = readings.marks
    assert marks is not None
    subs = np.zeros(len(readings), np.int64) if marks.sub is None else marks.sub.astype(np.int64)
    at_us = grids.at_us(readings, slots, time_us)
    draft = Draft(slots, readings.seq, subs, at_us, time_us, {}, {})
    first_us, last_us = int(at_us.min()), int(at_us.max())
    near = [one for one in windows if one.name in HOLDING and one.reaches(first_us, last_us)]
    if any(one.name == "reorder" for one in near):
        draft.interval_us = grids.intervals_us(readings, slots, at_us)
    for window in in_order(near):
        active, _ = window.active(draft)
        if len(active) and (window.name != "disconnect" or window.fault.stores):
            window.fault.change(draft, active)
    return draft.delay_us, draft.stored


def back_us(windows: Sequence[Window], slots: Ints, at_us: Ints) -> Ints:
    """Return the first instants, from given ones on, at which nothing keeps a device offline.

    `NEVER_US` if nobody has said when. Where links come and go more than 1,000 times without
    all being up, that is when the last of the windows ends.
    """
    until_us = at_us.copy()
    offline = sorted((one for one in windows if one.fault.offline),
                     key=lambda one: not one.fault.stores)  # those say at once how long at least
    for _ in range(ROUNDS_MAX):
        if not _moved_on(offline, slots, until_us, _up_us):
            return until_us
    while _moved_on(offline, slots, until_us, lambda fault, since_us: since_us + NEVER_US):
        pass
    return until_us


def _moved_on(
    windows: Sequence[Window], slots: Ints, until_us: Ints, up_us: Callable[[Fault, Ints], Ints]
) -> bool:
    moved = False
    for window in windows:
        if not len(slots) or window.begin_us > until_us.max() or window.end_us <= until_us.min():
            continue
        place = window.members(slots)
        ends_us = np.where(place >= 0, window.ends_us[place], 0)
        rows = np.flatnonzero((window.begin_us <= until_us) & (until_us < ends_us))
        since_us = until_us[rows] - window.begin_us
        later_us = np.minimum(ends_us[rows], window.begin_us + up_us(window.fault, since_us))
        moved = moved or bool((later_us > until_us[rows]).any())
        until_us[rows] = later_us
    return moved


def _up_us(fault: Fault, since_us: Ints) -> Ints:
    # When, since its beginning, a fault that is down here is up next.
    found, place = np.unique(since_us, return_inverse=True)
    turns = []
    for since in found.tolist():
        turn_us = fault.next_turn_us(since) if fault.is_down(since) else since
        turns.append(NEVER_US if turn_us is None else turn_us)
    return np.array(turns, dtype=np.int64)[place.reshape(-1)]
