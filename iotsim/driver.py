"""Driving a simulation at the pace of a clock.

Time goes in slots: what is due within one is stepped and handed over at its end, never before its
timestamp. A paced clock waits for the end of the slot; a virtual one waits until everything of the
slot was handed over. The last boundary that was begun is the frontier: an action takes effect
there, and never on a reading already computed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from logging import DEBUG
from typing import Any

from iotsim.actions import Action
from iotsim.clock import PacedClock, monotonic
from iotsim.engine.block import Block
from iotsim.engine.live import LiveKernel
from iotsim.engine.simulation import Simulation
from iotsim.errors import IotsimError
from iotsim.faults.base import NEVER_US
from iotsim.feeders import Feeder, Switchboard, Way
from iotsim.intake import Intake
from iotsim.journal import Journal
from iotsim.links import Links
from iotsim.logs import LOG
from iotsim.members import Members
from iotsim.publishers.ledger import Latency
from iotsim.quality import Judge
from iotsim.readings import Ints, Readings
from iotsim.stage import Director, Stage
from iotsim.units import US_PER_SECOND
from iotsim.verbs import BACK_PRESSURE

SLOT_S = 0.010
IDLE_S = 0.250  # how long a slot may be when nothing is due
VIRTUAL_ROWS = 10_000
SLOT_ROWS = 20_000
OWN_ROWS = 60  # of devices that each write to a connection of their own, when there is haste
OWN_TURNS = 3  # of the loop, until what a slot gave them is written
PIECE_ROWS = 1_000  # of one block, before somebody looks whether its lane is full
CATCH_UP_SLOTS = 50
YIELD_S = 0.020
FILL_SLOW, FILL_RESTORE = 0.8, 0.5  # of a lane's queue: devices slow down, and go on as before


class Driver:
    """Steps a simulation slot by slot.

    Parameters
    ----------
    simulation : Simulation
    clock : PacedClock
    intake : Intake
    switchboard : Switchboard
    links : Links
    end_us : int or None
        Where the run ends; None if somebody has to stop it.
    director : Director, optional
        Who acts when time has come to where it wants to.
    """

    def __init__(
        self,
        simulation: Simulation,
        clock: PacedClock,
        intake: Intake,
        switchboard: Switchboard,
        links: Links,
        end_us: int | None,
        director: Director | None = None,
    ) -> None:
        self.simulation, self.clock, self.intake = simulation, clock, intake
        self.frontier_us = self.acted_us = simulation.start_us
        self.end_us = end_us
        self.stage: Stage | None = None
        self.journal: Journal | None = None
        self._director, self._links, self._stopped = director, links, False
        self._waiting = False  # for the end of a slot
        self.late_rows = 0
        self.lateness = Latency()
        self.judge = Judge(clock, switchboard, simulation.start_us)
        self.judge.wanted_hz = self._wanted_hz
        self._switchboard = switchboard
        self._poke = asyncio.Event()
        self._moved = asyncio.Event()
        self._feeders: dict[Block, list[Feeder]] = {}
        self._breath_s = monotonic()
        kernel = simulation.kernel
        if isinstance(kernel, LiveKernel):
            self.judge.scripts = kernel.slowest
            if switchboard.ways:
                kernel.held = self._held

    def poke(self) -> None:
        """Look again: the pace or the end has changed."""
        self._poke.set()
        self._moved.set()

    def moved(self) -> None:
        """Look again: a feeder has handed something over."""
        self._moved.set()

    def stop(self) -> int:
        """End the run at the first boundary that nothing has begun; returns it."""
        self.come_to_now()
        begun_us = self.begun_us
        if self.end_us is None or self.end_us > begun_us:
            self.end_us = begun_us
        self._stopped = True
        self._keep_scripts_before(begun_us)
        self.poke()
        return self.end_us

    @property
    def begun_us(self) -> int:
        """The first boundary that nothing has begun, and no action has come after."""
        # Where lanes hold everybody up, the frontier is ahead of what has been computed.
        begun = [block.time_us for block in self.simulation.blocks]
        kernel = self.simulation.kernel
        if self.simulation.casts and isinstance(kernel, LiveKernel):
            begun.append(min(kernel.begun_us, self.frontier_us))
        begun = [time_us for time_us in begun if time_us < NEVER_US]
        begun_us = min(self.frontier_us, max(begun, default=self.frontier_us))
        return max(begun_us, self.acted_us)

    async def drive(self) -> None:
        """Step until the end."""
        self.judge.begin()
        while True:
            self._direct()
            self._links.turn(self.frontier_us)
            if self.end_us is not None and self.frontier_us >= self.end_us:
                return
            until_us = self._boundary_us()
            if not await self._reached(until_us):
                continue
            if until_us > self._boundary_us():
                continue  # somebody did something to the run while this slot was waited for
            self.frontier_us = until_us
            self._release(until_us)
            await self._advance(until_us)
            self._release(until_us)
            self._slow_down_where_full()
            if self.clock.virtual:
                await self._all_handed_over(until_us)
                self.clock.move_to(until_us)
                self.clock.catch_up(until_us)
            await self._breathe()

    def _direct(self) -> None:
        # What is due at the frontier is done before anything after it begins.
        director, start_us = self._director, self.simulation.start_us
        while director is not None and self.stage is not None and not self._stopped:
            due_us = director.next_us
            if due_us is None or start_us + due_us > self.frontier_us:
                break
            self.acted_us = max(self.acted_us, start_us + due_us)
            director.act(self.stage)
        if director is not None and not self._stopped and director.end_us is not None:
            self.end_us = start_us + director.end_us

    def _slow_down_where_full(self) -> None:
        # Back-pressure that changes how often devices publish is an action like any other; on
        # the way through history there is nobody to slow down, only to wait for.
        if self.clock.hurries:
            return
        for way in self._switchboard.ways:
            if not way.slows_down or self.stage is None:
                continue
            for lane in range(way.pump.lanes):
                fill, slowed = way.pump.fill(lane), lane in way.slowed
                if (fill > FILL_SLOW and not slowed) or (fill < FILL_RESTORE and slowed):
                    self._slow_down(way, lane, slowed)

    def _slow_down(self, way: Way, lane: int, slowed: bool) -> None:
        (way.slowed.discard if slowed else way.slowed.add)(lane)
        verb = "clear" if slowed else "inject"
        try:
            self.act(verb, {"fault": "slow_down", "where": way.lane_selector(lane),
                            "by": BACK_PRESSURE})
        except IotsimError as error:  # as many as a run can have: its lanes block from now on
            self.simulation.failures.add(error)

    def act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        """Do something at the first boundary that nothing has begun; returns the action.

        Raises
        ------
        IotsimError
            If it cannot be done; nothing is then changed.
        """
        assert self.stage is not None, "the stage is set before the first act"
        self.come_to_now()
        at_us = self.begun_us
        action = self.stage.do(verb, at_us - self.simulation.start_us, parameters, members)
        self.acted_us = at_us
        self._keep_scripts_before(at_us)
        self.poke()
        return action

    def come_to_now(self) -> None:
        """Bring the frontier to what the clock shows, if nothing is due before that.

        While nothing happens a slot is long, and its beginning is not when somebody did something.
        """
        if not self._waiting or self.clock.virtual:
            return
        until_us = min(self.clock.now_us(), self._boundary_us() - 1)
        if self.frontier_us < until_us <= self._due_us():
            for block in self.simulation.blocks:
                for readings in block.advance(until_us):
                    raise AssertionError(f"{len(readings)} readings where nothing was due")
            self.frontier_us = until_us

    def _keep_scripts_before(self, at_us: int) -> None:
        # They may be on their way to the end of the slot just now, one after the other.
        if isinstance(self.simulation.kernel, LiveKernel):
            self.simulation.kernel.stop_before(at_us)

    async def finish(self, deadline_s: float) -> bool:
        """Bring every device to the end, as its lanes have room; True if all is handed over.

        What the lanes have not taken within the deadline is left to `step_rest`.
        """
        end_us = self.frontier_us if self.end_us is None else self.end_us
        limit_s = monotonic() + deadline_s
        self._links.call_all_back()
        while True:
            await self._advance(end_us)
            self._links.release(end_us)
            if self.reached_by_all(end_us):
                self._links.flush(end_us)
            if self.reached_by_all(end_us) and self._switchboard.empty:
                return True
            left_s = limit_s - monotonic()
            if left_s <= 0:
                return False
            await _set(self._moved, left_s)

    async def step_rest(self) -> None:
        """Compute what is left up to the end; the lanes are closed, and only count it."""
        end_us = self.frontier_us if self.end_us is None else self.end_us
        for block in self.simulation.blocks:
            for readings in block.advance(end_us):
                self._write_off(readings)
                await self._breathe()
        kernel = self.simulation.kernel
        if self.simulation.casts and isinstance(kernel, LiveKernel):
            kernel.held = lambda party: False
            await self.simulation.advance_live(end_us)
        for readings in self.simulation.flush():
            self._write_off(readings)
        self._links.flush(end_us)

    def _write_off(self, readings: Readings) -> None:
        self.intake.add(readings)
        self._switchboard.discard(readings.sent(), "stopped before its lane had room")

    @property
    def behind(self) -> int:
        """How many devices have not been brought to where the run ended."""
        end_us = self.frontier_us if self.end_us is None else self.end_us
        return sum(len(block) for block in self.simulation.blocks if block.time_us < end_us)

    def reached_by_all(self, end_us: int) -> bool:
        """Return whether every device has come to an instant."""
        kernel = self.simulation.kernel
        due_us = kernel.next_us if isinstance(kernel, LiveKernel) else None
        blocks = all(block.time_us >= end_us for block in self.simulation.blocks)
        return blocks and (due_us is None or due_us >= end_us)

    def _boundary_us(self) -> int:
        slot_us = self._slot_us()
        until_us = self.frontier_us + slot_us
        if not self.clock.virtual:
            # Late: one slot takes in all that has passed, and no more than can be caught up.
            behind_us = self.clock.now_us() - until_us
            if behind_us > 0:
                rows = OWN_ROWS if self._switchboard.mixed else SLOT_ROWS
                more_us = min(behind_us, CATCH_UP_SLOTS * slot_us, self._rows_us(rows))
                until_us += more_us // slot_us * slot_us
        until_us = min(until_us, self._links.next_us)
        until_us = min(until_us, max(self._links.left_behind_us, self.frontier_us + 1))
        if self.clock.live_us > self.frontier_us:
            until_us = min(until_us, self.clock.live_us)
        due_us = None if self._director is None or self._stopped else self._director.next_us
        if due_us is not None:
            until_us = min(until_us, self.simulation.start_us + due_us)
        return until_us if self.end_us is None else min(until_us, self.end_us)

    def _slot_us(self) -> int:
        if self.clock.virtual:
            rate_hz = self.simulation.rate_hz
            return max(10_000, min(3600_000_000, int(VIRTUAL_ROWS / rate_hz * 1e6))
                       if rate_hz else 1_000_000)
        # However fast it is to go, a slot stays small: the loop is not ours alone.
        shortest_us = min(int(SLOT_S * self.clock.speed * 1e6), self._rows_us(SLOT_ROWS))
        shortest_us = max(1, shortest_us)
        due_us = self._due_us() - self.frontier_us
        longest_us = max(shortest_us, int(IDLE_S * self.clock.speed * 1e6))
        return max(shortest_us, min(longest_us, due_us // shortest_us * shortest_us))

    def _rows_us(self, rows: int) -> int:
        # How long the profiles' devices take to give so many rows.
        rate_hz = self.simulation.rate_hz
        return max(1, int(rows / rate_hz * 1e6)) if rate_hz else 2**62

    def _due_us(self) -> int:
        if self.simulation.rate_hz * SLOT_S * self.clock.speed > 1:
            return self.frontier_us
        due = [block.next_us for block in self.simulation.blocks if not block.retired]
        due.append(self._links.next_leave_us)
        due.append(self.simulation.deeds.next_script_us)
        kernel = self.simulation.kernel
        if isinstance(kernel, LiveKernel) and kernel.next_us is not None:
            due.append(kernel.next_us)
        return min(due, default=self.frontier_us)

    async def _reached(self, until_us: int) -> bool:
        # Waits for the end of the slot; False if something changed first.
        wait_s = self.clock.real_s_until(until_us)
        if wait_s <= 0:
            return True
        self._waiting = True
        try:
            poked = await _set(self._poke, wait_s)
        finally:
            self._waiting = False
        return not poked and self.clock.real_s_until(until_us) <= 0

    async def _advance(self, until_us: int) -> None:
        began_s = monotonic()
        self._step_blocks(until_us)
        self.judge.stepped(monotonic() - began_s)
        if self.simulation.casts:
            kernel = self.simulation.kernel
            if isinstance(kernel, LiveKernel):
                await self.simulation.advance_live(until_us)
            self._flush_scripts(until_us)

    def _step_blocks(self, until_us: int) -> None:
        self.simulation.drop_retired()
        blocks, seen = self.simulation.blocks, 0
        while seen < len(blocks):  # those that a split makes are appended meanwhile
            # Who is behind goes first: a lane that is nearly full would never be theirs.
            turn = sorted(blocks[seen:], key=lambda block: block.time_us)
            seen = len(blocks)
            for block in turn:
                self._step_block(block, until_us)
        if len(self._feeders) > 2 * len(self.simulation.blocks) + 100:
            self._feeders.clear()

    def _step_block(self, block: Block, until_us: int) -> None:
        if block.time_us >= until_us:
            return
        feeders = self._feeders_of(block)
        piece_us = max(1, PIECE_ROWS * block.profile.interval_us // len(block))
        while block.time_us < until_us and not any(feeder.full for feeder in feeders):
            for readings in block.advance(min(until_us, block.time_us + piece_us)):
                self._take(block, readings)
            self._links.come_to(block, min(block.time_us, until_us))
        if block.time_us < until_us and not self.clock.virtual:
            self.judge.stuck(feeders, self.clock.now_us() - block.time_us)

    def _flush_scripts(self, until_us: int) -> None:
        for readings in self.simulation.flush():
            self._take(readings.group.index, readings)
            self._links.come_to(readings.group.index, until_us)

    def _take(self, source: object, readings: Readings) -> None:
        if not self.clock.virtual:
            due_us = _taken_us(readings)
            late_s = (self.clock.now_us() - due_us) / (self.clock.speed * 1e6)
            self.lateness.add(late_s.tolist())
            self.late_rows += self.judge.handed(readings, due_us, late_s,
                                                scripted=isinstance(source, int))
        self.intake.add(readings)
        if self.journal is not None and LOG.isEnabledFor(DEBUG):
            self.journal.readings(readings)
        self._links.put(source, readings)

    def _release(self, until_us: int) -> None:
        # What somebody does now takes effect at the boundary that nothing has begun.
        self._links.release(min(until_us, self.begun_us))

    async def _all_handed_over(self, until_us: int) -> None:
        # Full lanes hold devices up within a slot, too: virtual time waits for them. What is left
        # when somebody stops the run is up to `finish`.
        while self.clock.virtual and not self._stopped:
            if not self._switchboard.empty:
                await _set(self._moved, 1.0)
            elif self.reached_by_all(until_us):
                return
            else:
                await self._advance(until_us)
                self._release(until_us)

    async def _breathe(self) -> None:
        # A run that is late, or virtual, must not keep the loop from everybody else.
        for _ in range(OWN_TURNS if self._switchboard.mixed else 0):
            await asyncio.sleep(0)
        if monotonic() - self._breath_s > YIELD_S or self.clock.virtual:
            await asyncio.sleep(0)
            self._breath_s = monotonic()

    def _feeders_of(self, block: Block) -> list[Feeder]:
        # They all go the same ways.
        if block not in self._feeders:
            self._feeders[block] = self._switchboard.of_slot(int(block.slots[0]))
        return self._feeders[block]

    def _wanted_hz(self, way: Way) -> float:
        # Of a profile's devices, in real seconds; what scripts will do nobody knows.
        return self.clock.speed * sum(
            len(block) * US_PER_SECOND / block.profile.interval_us
            for block in self.simulation.blocks if way.lane[int(block.slots[0])] >= 0)

    def _held(self, party: object) -> bool:
        if self.clock.virtual:  # each slot waits until all of the last is handed over
            return False
        order: int = getattr(party, "order", -1)
        feeders = self._switchboard.of_slot(order)
        held = any(feeder.full for feeder in feeders)
        if held:
            self.judge.stuck(feeders, linked=self.simulation.kernel.linked)
        return held


def _taken_us(readings: Readings) -> Ints:
    # When the readings were taken; a clock that drifts makes nobody late.
    marks = readings.marks
    shifted = marks is not None and marks.shift_us is not None
    return readings.time_us - marks.shift_us if shifted else readings.time_us  # type: ignore


async def _set(event: asyncio.Event, seconds: float) -> bool:
    # Waits for news, at most so long; True if there were any.
    event.clear()
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
