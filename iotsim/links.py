"""The links between devices and their lanes: what delays a reading, and whose session is closed.

A reading leaves at its time, or later: through a slow link, or when its device is back. What
waits is bounded, and leaves in order. Sessions of a device's own are closed and opened again when
simulated time comes to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from iotsim.engine.block import Block
from iotsim.engine.deeds import Deeds
from iotsim.engine.departures import Mask, departures, holds
from iotsim.engine.population import within
from iotsim.faults.base import NEVER_US, Window
from iotsim.feeders import Switchboard
from iotsim.intake import joined
from iotsim.members import Members
from iotsim.readings import Group, Ints, Readings

WAITING_ROWS_MAX = 5_000_000
WINDOWS_KEPT = 100  # before those that concern nobody any more are forgotten
STORED = "stored by a device that was still offline at the end"
FULL = "more than devices can store"


@dataclass(slots=True, eq=False)
class _Held:
    readings: Readings
    leave_us: Ints
    slots: Ints
    stored: Mask
    since_us: int

    def take(self, rows: Mask) -> _Held:
        return _Held(self.readings.take(rows), self.leave_us[rows], self.slots[rows],
                     self.stored[rows], self.since_us)


class Links:
    """Stands between the engine and the switchboard.

    Parameters
    ----------
    board : Switchboard
    """

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._deeds: Deeds | None = None
        self._held: dict[object, list[_Held]] = {}
        self._waiting_rows = 0
        self._stale: list[Ints] = []
        self._windows: list[Window] = []
        self._offline: list[Window] = []
        self._turns: list[tuple[int, int, Window]] = []
        self._number = count()
        self._down: set[int] = set()
        self._leaving: list[tuple[int, int]] = []

    def follow(self, deeds: Deeds) -> None:
        """Go by what is done to this simulation."""
        self._deeds = deeds

    # -- what the engine tells ------------------------------------------------------------------

    def check(self, member: Members, group: Group, slots: Ints | None) -> None:
        """Raise if there is no topic, or no room, for devices that begin or change group."""
        self._board.check(member, group, slots)

    def joined(self, member: Members, group: Group, slots: Ints) -> None:
        """Devices begin, or are in another group from some time on."""
        self._board.joined(member, group, slots)

    def injected(self, window: Window) -> None:
        """Note when a fault will hold readings back, or close sessions."""
        if not holds(window):
            return
        self._windows.append(window)
        self._turn_at(window, window.begin_us)
        self._turn_at(window, window.end_us)
        if window.fault.offline:
            self._offline.append(window)
            self._stale.append(window.slots)

    def cleared(self, window: Window, slots: Ints, at_us: int) -> None:
        """Let go what a fault held back, unless another one holds it."""
        if window.fault.offline:
            self._turn_at(window, at_us)
        if holds(window):
            self._stale.append(slots)

    def stopped(self, slots: Ints, at_us: int) -> None:
        """Note who is silent from now on; what its link holds leaves in its time."""
        self._stale.append(slots)
        if any(way.per_device for way in self._board.ways):
            self._leaving += [(at_us, slot) for slot in slots.tolist()]

    def _turn_at(self, window: Window, at_us: int) -> None:
        if at_us < NEVER_US:
            heapq.heappush(self._turns, (at_us, next(self._number), window))

    # -- readings -------------------------------------------------------------------------------

    def put(self, source: object, readings: Readings, until_us: int) -> None:
        """Take readings of a block or a cast that has come to `until_us`: all that left by then go.

        The readings of one source leave in the order in which they leave their links.
        """
        gone = readings.sent()
        waiting = self._held.get(source)
        late = gone.marks is not None and gone.marks.delay_us is not None
        if not late and waiting is None:
            self._board.put(gone)
            return
        if len(gone):
            self._hold(source, self._departing(gone))
        self._let_go(source, until_us)

    def _departing(self, readings: Readings) -> _Held:
        # What a stopped device still stores never leaves.
        assert self._deeds is not None, "links follow a simulation"
        people, index = self._deeds.population, readings.group.index
        slots = people.slots[index][readings.device]
        found = departures(readings, slots, self._windows, self._deeds.grids)
        profile = people.members[index].profile
        since_us = int(found.time_us.min()) - (0 if profile is None else profile.jitter_us)
        held = _Held(readings, found.leave_us, slots, found.stored, since_us)
        silent = held.stored & (held.leave_us >= people.ended_us[slots])
        if not silent.any():
            return held
        self._board.discard(readings.take(silent), STORED)
        return held.take(~silent)

    def _hold(self, source: object, held: _Held) -> None:
        if not len(held.readings):
            return
        self._held.setdefault(source, []).append(held)
        self._waiting_rows += len(held.readings)
        while self._waiting_rows > WAITING_ROWS_MAX:
            oldest = self._held[next(iter(self._held))].pop(0)
            self._waiting_rows -= len(oldest.readings)
            self._board.discard(oldest.readings, FULL)
            self._held = {key: parts for key, parts in self._held.items() if parts}

    def _look_again(self) -> None:
        # Something was done to these devices: what they hold may leave at other times, or never.
        if not self._stale:
            return
        touched = np.unique(np.concatenate(self._stale))
        self._stale.clear()
        before, self._held, self._waiting_rows = self._held, {}, 0
        for source, parts in before.items():
            for held in parts:
                again = within(held.slots, touched).any()
                self._hold(source, self._departing(held.readings) if again else held)

    def _let_go(self, source: object, until_us: int) -> None:
        self._look_again()
        ready: list[_Held] = []
        left: list[_Held] = []
        for held in self._held.pop(source, []):
            now = held.leave_us < until_us
            if now.any():
                ready.append(held.take(now))
            if not now.all():
                left.append(held.take(~now))
        if left:
            self._held[source] = left
        self._waiting_rows -= sum(len(held.readings) for held in ready)
        for part in _in_order(ready):
            self._board.put(part)

    def release(self, until_us: int) -> None:
        """Let go what is due, of every source as far as that has come."""
        for source in list(self._held):
            reached_us = until_us
            if isinstance(source, Block) and not source.retired:
                reached_us = min(until_us, source.time_us)
            self._let_go(source, reached_us)

    def _all_held(self) -> Iterator[_Held]:
        self._look_again()
        for parts in self._held.values():
            yield from parts

    @property
    def waiting_rows(self) -> int:
        """How many readings have not left yet."""
        return self._waiting_rows

    def flush(self, end_us: int) -> None:
        """At the end of a run: what a slow link holds leaves; what is stored is counted."""
        self._look_again()
        for source in list(self._held):
            for held in self._held.pop(source):
                stored = held.stored & (held.leave_us > end_us)
                if stored.any():
                    self._board.discard(held.readings.take(stored), STORED)
                self._board.put(held.readings.take(~stored))
        self._waiting_rows = 0

    # -- sessions -------------------------------------------------------------------------------

    @property
    def next_us(self) -> int:
        """When something changes that slots of time must not be mixed over."""
        return self._turns[0][0] if self._turns else NEVER_US

    @property
    def next_leave_us(self) -> int:
        """When the next waiting reading leaves."""
        return min((int(held.leave_us.min()) for held in self._all_held()), default=NEVER_US)

    def turn(self, now_us: int) -> None:
        """Close and open the sessions that are to be closed and open at an instant."""
        if self._leaving:
            self._let_leave(now_us)
        if not self._turns or self._turns[0][0] > now_us:
            return
        touched: set[int] = set()
        private = [way for way in self._board.ways if way.per_device]
        while self._turns and self._turns[0][0] <= now_us:
            at_us, _, window = heapq.heappop(self._turns)
            if private and window.fault.offline:
                touched.update(window.slots.tolist())
                turn_us = window.fault.next_turn_us(at_us - window.begin_us)
                if turn_us is not None and window.begin_us + turn_us < window.end_us:
                    self._turn_at(window, window.begin_us + turn_us)
        self._offline = [window for window in self._offline if window.end_us > now_us]
        if len(self._windows) > WINDOWS_KEPT:
            self._forget(now_us)
        for slot in sorted(touched):
            self._set(slot, self._is_down(slot, now_us))

    def _forget(self, now_us: int) -> None:
        # What is held, and what devices that are behind have yet to give, goes by its own time.
        assert self._deeds is not None, "links follow a simulation"
        since_us = min((one.since_us for one in self._all_held()), default=now_us)
        since_us = min(since_us, self._deeds.reached_us(now_us))
        self._windows = [window for window in self._windows if window.end_us > since_us]

    def _is_down(self, slot: int, now_us: int) -> bool:
        one = np.array([slot], dtype=np.int64)
        for window in self._offline:
            place = int(window.members(one)[0])
            if place >= 0 and window.begin_us <= now_us < int(window.ends_us[place]) and (
                window.fault.is_down(now_us - window.begin_us)
            ):
                return True
        return False

    def _set(self, slot: int, down: bool) -> None:
        if down == (slot in self._down):
            return
        (self._down.add if down else self._down.discard)(slot)
        for way in self._board.ways:
            if way.per_device and way.lane[slot] >= 0:
                lane = int(way.lane[slot])
                (way.pump.hang_up if down else way.pump.call_back)(lane)

    def _let_leave(self, now_us: int) -> None:
        held = {slot for part in self._all_held() for slot in part.slots.tolist()}
        still: list[tuple[int, int]] = []
        for at_us, slot in self._leaving:
            if at_us > now_us or slot in held or not all(
                feeder.empty for feeder in self._board.of_slot(slot)
            ):
                still.append((at_us, slot))
                continue
            for way in self._board.ways:
                if way.per_device and way.lane[slot] >= 0:
                    way.pump.retire(int(way.lane[slot]))
        self._leaving = still

    def call_all_back(self) -> None:
        """At the end of a run: open every session, so that what is queued can leave."""
        for slot in sorted(self._down):
            self._set(slot, False)


def _in_order(parts: list[_Held]) -> Iterator[Readings]:
    # Runs of rows that stand together in one part leave together.
    if not parts:
        return
    whole = [part.readings for part in parts]
    together = joined(whole)
    leave_us = np.concatenate([part.leave_us for part in parts])
    order = np.argsort(leave_us, kind="stable")
    if len(together) == 1:
        yield together[0].take(order)
        return
    sizes = [len(one) for one in together]
    part_of = np.repeat(np.arange(len(together)), sizes)
    row_of = np.concatenate([np.arange(size) for size in sizes])
    ordered = part_of[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    for rows in np.split(order, edges):
        yield together[int(part_of[rows[0]])].take(row_of[rows])
