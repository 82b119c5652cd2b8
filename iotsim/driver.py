"""Driving a simulation at the pace of a clock.

Time goes in slots: what is due within one is stepped and handed over at its end, never before its
timestamp. A paced clock waits for the end of the slot; a virtual one waits until everything of the
slot was handed over. The last boundary that was begun is the frontier: an action takes effect
there, and never on a reading already computed.
"""

from __future__ import annotations

import asyncio
import math

from iotsim.clock import PacedClock, monotonic
from iotsim.engine.block import Block
from iotsim.engine.live import LiveKernel
from iotsim.engine.simulation import Simulation
from iotsim.feeders import Feeder, Switchboard
from iotsim.intake import Intake
from iotsim.publishers.ledger import Latency
from iotsim.readings import Readings

SLOT_S = 0.010
LATE_S = 0.100
IDLE_S = 0.250  # how long a slot may be when nothing is due
VIRTUAL_ROWS = 10_000
SLOT_ROWS = 20_000
PIECE_ROWS = 1_000  # of one block, before somebody looks whether its lane is full
CATCH_UP_SLOTS = 50
YIELD_S = 0.020


class Driver:
    """Steps a simulation slot by slot.

    Parameters
    ----------
    simulation : Simulation
    clock : PacedClock
    intake : Intake
    switchboard : Switchboard
    end_us : int or None
        Where the run ends; None if somebody has to stop it.
    """

    def __init__(
        self,
        simulation: Simulation,
        clock: PacedClock,
        intake: Intake,
        switchboard: Switchboard,
        end_us: int | None,
    ) -> None:
        self.simulation, self.clock, self.intake = simulation, clock, intake
        self.frontier_us = simulation.start_us
        self.end_us = end_us
        self.late_rows = 0
        self.lateness = Latency()
        self._switchboard = switchboard
        self._poke = asyncio.Event()
        self._moved = asyncio.Event()
        self._gates: dict[int, list[Feeder]] = {}
        self._feeders = {id(block): self._feeders_of(block) for block in simulation.blocks}
        self._breath_s = monotonic()
        kernel = simulation.kernel
        if isinstance(kernel, LiveKernel) and simulation.casts and switchboard.feeders:
            self._find_gates()
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
        begun_us = self._begun_us()
        if self.end_us is None or self.end_us > begun_us:
            self.end_us = begun_us
        self.poke()
        return self.end_us

    def _begun_us(self) -> int:
        # Where lanes hold everybody up, the frontier is ahead of what has been computed.
        begun = [block.time_us for block in self.simulation.blocks]
        kernel = self.simulation.kernel
        if self.simulation.casts and isinstance(kernel, LiveKernel):
            begun.append(kernel.begun_us)
        return min(self.frontier_us, max(begun, default=self.frontier_us))

    async def drive(self) -> None:
        """Step until the end."""
        while self.end_us is None or self.frontier_us < self.end_us:
            until_us = self._boundary_us()
            if not await self._reached(until_us):
                continue
            if self.end_us is not None and until_us > self.end_us:
                continue  # somebody stopped the run while this slot was waited for
            self.frontier_us = until_us
            await self._advance(until_us)
            if self.clock.virtual:
                await self._handed_over()
                self.clock.move_to(until_us)
            await self._breathe()

    async def finish(self, deadline_s: float) -> None:
        """Bring every device to the end, as its lanes have room, within a deadline.

        What the lanes have not taken by then is left to `step_rest`.
        """
        end_us = self.frontier_us if self.end_us is None else self.end_us
        limit_s = monotonic() + deadline_s
        while True:
            await self._advance(end_us)
            if self._reached_by_all(end_us) and self._switchboard.empty:
                return
            left_s = limit_s - monotonic()
            if left_s <= 0:
                return
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
            await kernel.advance(end_us)
        for readings in self.simulation.flush():
            self._write_off(readings)

    def _write_off(self, readings: Readings) -> None:
        self.intake.add(readings)
        self._switchboard.discard(readings, "stopped before its lane had room")

    @property
    def behind(self) -> int:
        """How many devices have not been brought to where the run ended."""
        end_us = self.frontier_us if self.end_us is None else self.end_us
        return sum(len(block) for block in self.simulation.blocks if block.time_us < end_us)

    def _reached_by_all(self, end_us: int) -> bool:
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
                more_us = min(behind_us, CATCH_UP_SLOTS * slot_us, self._rows_us(SLOT_ROWS))
                until_us += more_us // slot_us * slot_us
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
        due = [block.next_us for block in self.simulation.blocks]
        kernel = self.simulation.kernel
        if isinstance(kernel, LiveKernel) and kernel.next_us is not None:
            due.append(kernel.next_us)
        return min(due, default=self.frontier_us)

    async def _reached(self, until_us: int) -> bool:
        # Waits for the end of the slot; False if something changed first.
        wait_s = self.clock.real_s_until(until_us)
        if wait_s <= 0:
            return True
        return not await _set(self._poke, wait_s) and self.clock.real_s_until(until_us) <= 0

    async def _advance(self, until_us: int) -> None:
        self._step_blocks(until_us)
        if self.simulation.casts:
            kernel = self.simulation.kernel
            if isinstance(kernel, LiveKernel):
                await kernel.advance(until_us)
            self._flush_scripts()

    def _step_blocks(self, until_us: int) -> None:
        for block in self.simulation.blocks:
            feeders = self._feeders[id(block)]
            piece_us = max(1, PIECE_ROWS * block.profile.interval_us // len(block))
            while block.time_us < until_us and not any(feeder.full for feeder in feeders):
                for readings in block.advance(min(until_us, block.time_us + piece_us)):
                    self._take(readings)

    def _flush_scripts(self) -> None:
        for readings in self.simulation.flush():
            self._take(readings)

    def _take(self, readings: Readings) -> None:
        if not self.clock.virtual:
            behind_us = (self.clock.now_us() - readings.time_us) / self.clock.speed
            late_s = behind_us * 1e-6
            self.lateness.add(late_s.tolist())
            self.late_rows += int((late_s > LATE_S).sum())
        self.intake.add(readings)
        self._switchboard.put(readings)

    async def _handed_over(self) -> None:
        while not self._switchboard.empty:
            await _set(self._moved, 1.0)
            if self.end_us is not None and self.end_us <= self.frontier_us:
                return

    async def _breathe(self) -> None:
        # A run that is late, or virtual, must not keep the loop from everybody else.
        if monotonic() - self._breath_s > YIELD_S or self.clock.virtual:
            await asyncio.sleep(0)
            self._breath_s = monotonic()

    def _feeders_of(self, block: Block) -> list[Feeder]:
        return self._switchboard.of_device(block.group, block.first_member)

    def _find_gates(self) -> None:
        order = 0
        scripted = {id(cast.group) for cast in self.simulation.casts}
        for group in self.simulation.groups:
            if id(group) in scripted:
                for i in range(len(group)):
                    self._gates[order + i] = self._switchboard.of_device(group, i)
            order += len(group)

    def _held(self, party: object) -> bool:
        if self.clock.virtual:  # each slot waits until all of the last is handed over
            return False
        order = getattr(party, "order", -1)
        return any(feeder.full for feeder in self._gates.get(order, ()))


async def _set(event: asyncio.Event, seconds: float) -> bool:
    # Waits for news, at most so long; True if there were any.
    event.clear()
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
