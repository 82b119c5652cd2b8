"""The links between devices and their lanes: what delays a reading, and whose session is closed.

A reading leaves at its time, or later: through a slow link, or when its device is back. What
waits is bounded, and leaves in order. Sessions of a device's own are closed and opened again when
simulated time comes to it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np

from iotsim.engine.block import Block
from iotsim.engine.deeds import Deeds
from iotsim.engine.departures import departures, holds
from iotsim.engine.population import within
from iotsim.faults.base import NEVER_US, Window
from iotsim.feeders import Switchboard, Way
from iotsim.intake import joined
from iotsim.members import Members
from iotsim.readings import Group, Ints, Readings
from iotsim.waiting import Held, Waiting

WAITING_ROWS_MAX = 5_000_000
WINDOWS_KEPT = 100  # before those that concern nobody any more are forgotten
STORED = "stored by a device that was still offline at the end"
FULL = "more than devices can store"
ENDED = "devices that have ended"  # whose readings nobody gives any more


class Links:
    """Stands between the engine and the switchboard.

    Parameters
    ----------
    board : Switchboard
    """

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._deeds: Deeds | None = None
        self._waiting = Waiting()
        self._stale: list[Ints] = []
        self._windows: list[Window] = []
        self._offline: list[Window] = []
        self._turns: list[tuple[int, int, Window]] = []
        self._number = count()
        self._settled = self._seen = 0
        self._down: set[int] = set()
        self._parked: set[int] = set()
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
        known = len(slots) and int(slots[0]) < self._seen
        self._board.joined(member, group, slots)
        if not known and self._deeds is not None:
            self._open_where_up(slots)
        self._seen = max(self._seen, int(slots[-1]) + 1 if len(slots) else 0)

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

    def put(self, source: object, readings: Readings) -> None:
        """Take readings of a block or a cast; they go on at once, or when `come_to` says so."""
        gone = readings.sent()
        late = gone.marks is not None and gone.marks.delay_us is not None
        self._rehome()
        if not late and source not in self._waiting:
            self._board.put(gone)
            return
        if len(gone):
            self._hold(source, self._departing(gone))

    def come_to(self, source: object, until_us: int) -> None:
        """Let go what has left by then of a source that has given all its readings up to there.

        Not before: they leave in the order in which they leave their links, whatever the pieces
        in which they were computed.
        """
        self._rehome()
        if source in self._waiting:
            self._let_go(source, until_us)

    def _rehome(self) -> None:
        # What a block held that has given way goes on with who steps its devices now: each of them
        # leaves in order, however its block was split or merged, and at whatever pace.
        if not self._waiting.rows or self._deeds is None:
            return
        simulation = self._deeds.simulation
        if simulation.settled == self._settled:
            return
        self._settled = simulation.settled
        for source in self._waiting.sources:
            if isinstance(source, Block) and source.retired:
                for held in self._waiting.due(source, NEVER_US + 1):
                    for block, mine in simulation.homes(held.slots):
                        self._waiting.put(ENDED if block is None else block, held.take(mine))

    def _departing(self, readings: Readings) -> Held:
        # What a stopped device still stores never leaves.
        assert self._deeds is not None, "links follow a simulation"
        people, index = self._deeds.population, readings.group.index
        slots = people.slots[index][readings.device]
        found = departures(readings, slots, self._windows, self._deeds.grids)
        profile = people.members[index].profile
        since_us = int(found.time_us.min()) - (0 if profile is None else profile.jitter_us)
        held = Held(readings, found.leave_us, slots, found.stored, since_us)
        ended_us = people.ended_us[slots]
        silent = held.stored & (ended_us < NEVER_US) & (held.leave_us >= ended_us)
        if not silent.any():
            return held
        self._board.discard(readings.take(silent), STORED)
        return held.take(~silent)

    def _hold(self, source: object, held: Held) -> None:
        self._waiting.put(source, held)
        while self._waiting.rows > WAITING_ROWS_MAX:
            self._board.discard(self._waiting.oldest().readings, FULL)

    def _look_again(self) -> None:
        # Something was done to these devices: what they hold may leave at other times, or never.
        if not self._stale:
            return
        touched = np.unique(np.concatenate(self._stale))
        self._stale.clear()
        for source, held in self._waiting.clear():
            again = within(held.slots, touched).any()
            self._hold(source, self._departing(held.readings) if again else held)

    def _let_go(self, source: object, until_us: int) -> None:
        self._look_again()
        for part in _in_order(self._waiting.due(source, until_us)):
            self._board.put(part)

    def release(self, until_us: int) -> None:
        """Let go what is due, of every source as far as that has come."""
        self._look_again()
        self._rehome()
        if self._waiting.next_us >= until_us:
            return
        for source in self._waiting.sources:
            reached_us = until_us
            if isinstance(source, Block) and not source.gives_way:
                reached_us = min(until_us, source.time_us)
            self._let_go(source, reached_us)

    @property
    def waiting_rows(self) -> int:
        """How many readings have not left yet."""
        return self._waiting.rows

    def flush(self, end_us: int) -> None:
        """At the end of a run: what a slow link holds leaves; what is stored is counted."""
        self._look_again()
        for _, held in self._waiting.clear():
            stored = held.stored & (held.leave_us > end_us)
            if stored.any():
                self._board.discard(held.readings.take(stored), STORED)
            self._board.put(held.readings.take(~stored))

    # -- sessions -------------------------------------------------------------------------------

    @property
    def next_us(self) -> int:
        """When something changes that slots of time must not be mixed over."""
        return self._turns[0][0] if self._turns else NEVER_US

    @property
    def left_behind_us(self) -> int:
        """When the next reading leaves of a block that gives way to others, or has.

        It must not be mixed up with what the same devices give in their new blocks.
        """
        self._look_again()
        return min((self._waiting.next_of(source) for source in self._waiting.sources
                    if isinstance(source, Block) and (source.gives_way or source.splits)),
                   default=NEVER_US)

    @property
    def next_leave_us(self) -> int:
        """When the next waiting reading leaves."""
        self._look_again()
        return self._waiting.next_us

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
        since_us = min((one.since_us for one in self._waiting.parts()), default=now_us)
        since_us = min(since_us, self._deeds.reached_us(now_us))
        self._windows = [window for window in self._windows if window.end_us > since_us]

    def park(self, slots: Iterable[int], now_us: int, *, parked: bool) -> None:
        """Keep sessions closed whatever the faults say, or no longer."""
        for slot in slots:
            (self._parked.add if parked else self._parked.discard)(slot)
            self._set(slot, self._is_down(slot, now_us))

    def _is_down(self, slot: int, now_us: int) -> bool:
        if slot in self._parked:
            return True
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
                if not down:
                    way.pump.call_back(lane)
                elif self._all_down(way.slots[lane]):
                    way.pump.hang_up(lane)

    def _close_where_down(self, slot: int) -> None:
        # The last that was up of those that share a session has ended.
        assert self._deeds is not None, "links follow a simulation"
        ended_us = self._deeds.population.ended_us
        for way in self._board.ways:
            if way.per_device and way.lane[slot] >= 0:
                sharing = way.slots[int(way.lane[slot])]
                alive = any(ended_us[one] >= NEVER_US for one in sharing)
                if alive and self._all_down(sharing):
                    way.pump.hang_up(int(way.lane[slot]))

    def _open_where_up(self, slots: Ints) -> None:
        # Who joins a session that is closed is not down: it is opened, unless it was put to rest.
        for way in self._board.ways:
            if not way.per_device:
                continue
            for lane in np.unique(way.lane[slots]).tolist():
                if lane >= 0 and self._parked.isdisjoint(way.slots[lane]):
                    way.pump.call_back(lane)

    def _all_down(self, slots: list[int]) -> bool:
        # Devices that share a session have it as long as one of them has.
        assert self._deeds is not None, "links follow a simulation"
        ended_us = self._deeds.population.ended_us
        return all(slot in self._down or ended_us[slot] < NEVER_US for slot in slots)

    def _let_leave(self, now_us: int) -> None:
        self._look_again()
        held = {slot for part in self._waiting.parts() for slot in part.slots.tolist()}
        still: list[tuple[int, int]] = []
        for at_us, slot in self._leaving:
            if at_us <= now_us:
                self._close_where_down(slot)
            if at_us > now_us or slot in held or not all(
                feeder.empty for feeder in self._board.of_slot(slot)
            ):
                still.append((at_us, slot))
                continue
            for way in self._board.ways:
                if way.per_device and way.lane[slot] >= 0:
                    self._leave(way, int(way.lane[slot]), held)
        self._leaving = still

    def _leave(self, way: Way, lane: int, held: set[int]) -> None:
        # A gateway stays without its sensors, until somebody says that it goes.
        if not hasattr(way.route.publisher, "session_of"):
            way.pump.retire(lane)
        elif lane in way.closing and held.isdisjoint(way.slots[lane]):
            way.closing.discard(lane)
            way.pump.retire(lane, getattr(way.route.publisher, "goodbye_s", None))

    def call_all_back(self) -> None:
        """At the end of a run: open every session, so that what is queued can leave."""
        for slot in sorted(self._down):
            if slot not in self._parked or self._has_more(slot):
                self._set(slot, False)

    def _has_more(self, slot: int) -> bool:
        return any(way.pump.open_of(int(way.lane[slot])) for way in self._board.ways
                   if way.lane[slot] >= 0)


def _in_order(parts: list[Held]) -> Iterator[Readings]:
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
