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
from iotsim.engine.deeds import HOLDING, held_by, stored_until
from iotsim.faults.base import NEVER_US, Window
from iotsim.feeders import Switchboard
from iotsim.intake import joined
from iotsim.members import Members
from iotsim.readings import Group, Ints, Readings

WAITING_ROWS_MAX = 5_000_000
STORED = "stored by a device that was still offline at the end"
FULL = "more than devices can store"


@dataclass(slots=True, eq=False)
class _Held:
    readings: Readings
    leave_us: Ints
    slots: Ints


class Links:
    """Stands between the engine and the switchboard.

    Parameters
    ----------
    board : Switchboard
    """

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._slots: dict[int, Ints] = {}
        self._held: dict[object, list[_Held]] = {}
        self._waiting_rows = 0
        self._offline: list[Window] = []
        self._turns: list[tuple[int, int, Window]] = []
        self._number = count()
        self._down: set[int] = set()
        self._leaving: list[tuple[int, int]] = []

    # -- what the engine tells ------------------------------------------------------------------

    def check(self, member: Members, group: Group, slots: Ints | None) -> None:
        """Raise if there is no topic, or no room, for devices that begin or change group."""
        self._board.check(member, group, slots)

    def joined(self, member: Members, group: Group, slots: Ints) -> None:
        """Devices begin, or are in another group from some time on."""
        self._slots[group.index] = slots
        self._board.joined(member, group, slots)

    def injected(self, window: Window) -> None:
        """Note when a fault will hold readings back, or close sessions."""
        if window.fault.offline or window.name in HOLDING:
            self._offline.append(window)
            self._turn_at(window, window.begin_us)
            self._turn_at(window, window.end_us)

    def cleared(self, window: Window, slots: Ints, at_us: int) -> None:
        """Let go what a fault held back, unless another one holds it."""
        if window in self._offline:
            self._turn_at(window, at_us)
        for held in self._all_held():
            waits = (held.leave_us > at_us) & held_by(held.readings, window)
            rows = np.flatnonzero(waits & np.isin(held.slots, slots))
            if len(rows):
                until_us = stored_until(self._offline, held.slots[rows], at_us)
                held.leave_us[rows] = np.minimum(held.leave_us[rows], until_us)

    def stopped(self, slots: Ints, at_us: int) -> None:
        """Note who says goodbye to its broker, when what its link holds has left in its time."""
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
            leave_us = gone.time_us.copy()
            if gone.marks is not None and gone.marks.shift_us is not None:
                leave_us -= gone.marks.shift_us
            if gone.marks is not None and gone.marks.delay_us is not None:
                leave_us = np.minimum(leave_us + gone.marks.delay_us, NEVER_US)
            self._hold(source, _Held(gone, leave_us, self._slots[gone.group.index][gone.device]))
        self._let_go(source, until_us)

    def _hold(self, source: object, held: _Held) -> None:
        self._held.setdefault(source, []).append(held)
        self._waiting_rows += len(held.readings)
        while self._waiting_rows > WAITING_ROWS_MAX:
            oldest = self._held[next(iter(self._held))].pop(0)
            self._waiting_rows -= len(oldest.readings)
            self._board.discard(oldest.readings, FULL)
            self._held = {key: parts for key, parts in self._held.items() if parts}

    def _let_go(self, source: object, until_us: int) -> None:
        ready: list[_Held] = []
        left: list[_Held] = []
        for held in self._held.pop(source, []):
            now = held.leave_us < until_us
            if now.any():
                ready.append(_Held(held.readings.take(now), held.leave_us[now], held.slots[now]))
            if not now.all():
                later = ~now
                left.append(_Held(held.readings.take(later), held.leave_us[later],
                                  held.slots[later]))
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
        for parts in self._held.values():
            yield from parts

    @property
    def waiting_rows(self) -> int:
        """How many readings have not left yet."""
        return self._waiting_rows

    def flush(self, end_us: int) -> None:
        """At the end of a run: what a slow link holds leaves; what is stored is counted."""
        for source in list(self._held):
            for held in self._held.pop(source):
                stored = stored_until(self._offline, held.slots, end_us) > end_us
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
        for slot in sorted(touched):
            self._set(slot, self._is_down(slot, now_us))

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
