"""The machinery of one live run: pumps, lanes, driver, intake; how it comes up and goes down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from iotsim.acks import Acks
from iotsim.arrow import Writer
from iotsim.capture import Bound, Capture
from iotsim.clock import PacedClock, monotonic, wall_us
from iotsim.destinations import Destination, destinations_of
from iotsim.digest import Digest
from iotsim.driver import Driver
from iotsim.engine.live import LiveKernel
from iotsim.engine.population import Population
from iotsim.engine.simulation import Failures, Simulation
from iotsim.errors import CutShort, IotsimError, RunBroken, Undelivered
from iotsim.feeders import Switchboard, Way
from iotsim.intake import Intake, Viewer
from iotsim.journal import Journal
from iotsim.links import STORED, Links
from iotsim.listening.desk import Desk
from iotsim.offline import kinds_of
from iotsim.outlets import routes_of
from iotsim.publishers.base import Identity, Publisher
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.publishers.pump import Pump
from iotsim.readings import Readings
from iotsim.stage import Director, Totals

if TYPE_CHECKING:
    from iotsim.run_state import Wish

T = TypeVar("T")

# Of the seconds that winding up may take: to compute what lanes held up, to close links, to end
# devices.
REST_S, CLOSE_S, END_S = 2.0, 1.0, 0.5
# A run that ends by itself waits for its brokers while anything moves: so long for a movement, so
# long in all, and looks so often.
DRAIN_S, DRAIN_MAX_S, DRAIN_LOOK_S = 30.0, 600.0, 0.25


class Works:
    """What a run owns besides its name: built by `open`, taken down by `wind_up`.

    Parameters
    ----------
    wish : Wish
    run_id : str
    """

    def __init__(self, wish: Wish, run_id: str) -> None:
        self.wish, self.run_id = wish, run_id
        self.failures = Failures()
        self.groups = [member.group(i) for i, member in enumerate(wish.fleet.members)]
        self.notes: list[str] = []
        self.pumps: list[Pump] = []
        self.start_us = wish.start_us or 0
        self.viewers: list[Viewer] = []  # told of all readings, such as panels
        self.intake = Intake(Digest(self.start_us), Capture(Bound()), None, self.viewers)
        self.acks = Acks()
        self.driver: Driver | None = None
        self.desks: list[Desk] = []
        self.journal = Journal(self)
        self.links: Links | None = None
        self.director: Director | None = None
        self._switchboard: Switchboard | None = None
        self._ending = self._hurried = False

    async def open(self) -> Driver:
        """Connect every publisher, build the simulation, and start the clock.

        Raises
        ------
        ConnectError
            If a publisher cannot be connected.
        """
        wish, fleet = self.wish, self.wish.fleet
        writer = None if wish.to is None else Writer(wish.to, self.groups, kinds_of(fleet))
        routes, self.notes = routes_of(fleet.outlets, fleet.members, self.groups)
        board = Switchboard(fleet.outlets, routes, self.run_id, self._moved, self._make_pump)
        self._switchboard = board
        self.journal.connecting()
        for pump in self.pumps:
            await pump.open()
        board.prepare(fleet.members, self.groups)
        await self._open_desks()
        self.links = Links(board)
        live_us = wall_us() if wish.start_us is None else wish.start_us
        self.start_us = live_us - wish.backfill_us
        director = None if wish.scenario is None else wish.scenario.director(self.start_us)
        simulation = Simulation(
            fleet.members,
            fleet.seed,
            self.start_us,
            groups=self.groups,
            parts=board.parts,
            make_kernel=lambda failed: LiveKernel(failed, self._is_virtual),
            witness=self.links,
        )
        self.links.follow(simulation.deeds)
        board.opened()
        simulation.failures, self.groups = self.failures, simulation.groups
        self.intake = Intake(Digest(self.start_us), Capture(wish.bound), writer,
                             self.viewers)
        total_us = wish.duration_total_us
        end_us = None if total_us is None else live_us + total_us
        clock = PacedClock(self.start_us, wish.speed)
        if wish.backfill_us:
            clock.hurry_until(live_us, catch_up=wish.start_us is None)
        self.driver = Driver(simulation, clock, self.intake, board, self.links, end_us, director)
        self.driver.journal, self.driver.judge.each_second = self.journal, self.journal.look
        self.director = director
        self.journal.ready()
        return self.driver

    async def _open_desks(self) -> None:
        fleet = self.wish.fleet
        if not fleet.ears:
            return
        people = Population(fleet.seed)
        for member, group in zip(fleet.members, self.groups, strict=True):
            people.add(member, group, 0)
        self.desks = [Desk(ear, people) for ear in fleet.ears]
        await asyncio.gather(*(desk.open() for desk in self.desks))

    def listen(self) -> None:
        """Take commands from outside, as long as the run is neither in its past nor at its end."""
        driver = self.driver
        assert driver is not None, "a run that listens is open"
        for desk in self.desks:
            desk.begin(driver.simulation.deeds, driver.act,
                       lambda: not (self._ending or driver.clock.hurries))

    def _make_pump(
        self, publisher: Publisher, devices: int, names: Sequence[Identity] | None
    ) -> Pump:
        settled = partial(self.acks.add, publisher=len(self.pumps))
        pump = Pump(publisher, devices=devices, names=names, settled=settled,
                    run_id=f"{self.run_id}-{len(self.pumps)}")
        self.pumps.append(pump)
        return pump

    @property
    def ways(self) -> list[Way]:
        """Where readings go."""
        return [] if self._switchboard is None else self._switchboard.ways

    def alive(self) -> int:
        """Return how many devices live."""
        if self.driver is None:
            return len(self.wish.fleet)
        return int(np.count_nonzero(
            self.driver.simulation.population.alive(self.driver.frontier_us)))

    def active(self, elapsed_us: int) -> dict[str, int]:
        """Return on how many devices each fault is active."""
        if self.driver is None:
            return {}
        at_us = min(self.start_us + elapsed_us, self.driver.frontier_us)
        return self.driver.simulation.deeds.active(at_us)

    def totals(self) -> Totals:
        """Return how many readings there are so far."""
        return Totals(self.intake.rows, self.intake.withheld_rows, self.failures.count)

    def chunks(self) -> list[Readings]:
        """Return the readings that are held so far."""
        with self.intake.lock:
            self.intake.flush()
            return self.intake.capture.chunks()

    def _moved(self) -> None:
        if self.driver is not None:
            self.driver.moved()

    def _is_virtual(self) -> bool:
        # At the end, a party that waits for the outside world holds nobody up any more.
        return self.driver is not None and self.driver.clock.virtual and not self._ending

    def hurry(self) -> None:
        """Wait for brokers no longer than a run does that is stopped."""
        self._hurried = True

    async def wind_up(self, budget_s: float, *, patient: bool = False) -> None:
        """Bring every device to the end, drain or report every queue, and close everything.

        A step that fails is noted, and the next one is taken all the same.

        Parameters
        ----------
        budget_s : float
            Real seconds for brokers to take what is left; it is over in little more.
        patient : bool
            First wait for brokers as long as anything moves: a killed one may come back.
        """
        self._ending = True
        self.journal.stopping()
        for desk in self.desks:
            desk.stop()
        if self.driver is not None:
            self.driver.judge.ending(self.end_us - self.start_us)
        if patient and self.driver is not None:
            await self._drain(self.driver)
        limit_s = monotonic() + budget_s
        driver, board = self.driver, self._switchboard
        if driver is not None and board is not None:
            # All but the last seconds for the lanes, as long as they take anything.
            patience_s = max(0.2 * budget_s, budget_s - REST_S - CLOSE_S - END_S)
            await self._try(driver.finish(patience_s), patience_s + 0.1)
            driver.judge.end(self.end_us - self.start_us)
            for pump in self.pumps:
                pump.stop_admission()
            await self._try(driver.step_rest(), REST_S)
            await self._try(board.end(), 0.5)
        left_s = max(CLOSE_S, limit_s - monotonic() - END_S)
        await asyncio.gather(*(self._try(pump.close(left_s), left_s + 0.5) for pump in self.pumps),
                             *(self._try(desk.close(), CLOSE_S) for desk in self.desks))
        if driver is not None:
            if driver.behind:
                self.note(CutShort(driver.behind))
            if isinstance(driver.simulation.kernel, LiveKernel):
                await self._try(driver.simulation.kernel.end(), END_S)
        if self.director is not None:
            self.director.close()
        self._close_books()
        self.journal.over()

    async def _drain(self, driver: Driver) -> None:
        limit_s, moved_s, last = monotonic() + DRAIN_MAX_S, monotonic(), (0, 0)
        while not self._hurried and monotonic() < min(limit_s, moved_s + DRAIN_S):
            handed_over = await self._try(driver.finish(DRAIN_LOOK_S), 2 * DRAIN_LOOK_S)
            if handed_over and all([await pump.drain(DRAIN_LOOK_S) for pump in self.pumps]):
                return
            counts = [pump.snapshot() for pump in self.pumps]
            settled = sum(one.acknowledged + one.refused + one.dropped for one in counts)
            if (self.intake.rows, settled) != last:
                last, moved_s = (self.intake.rows, settled), monotonic()

    def _close_books(self) -> None:
        try:
            self.intake.flush()
            if self.intake.writer is not None:
                self.intake.writer.close()
        except Exception as error:
            self.note(error)
            if self.intake.writer is not None:
                self.intake.writer.abandon()

    async def _try(self, step: Awaitable[T], limit_s: float) -> T | None:
        try:
            async with asyncio.timeout(limit_s):
                return await step
        except TimeoutError:
            pass  # what it has left undone is counted or noted by the steps that follow
        except Exception as error:
            self.note(error)
        return None

    def note(self, error: Exception) -> None:
        """Keep an error of the run."""
        self.failures.add(error if isinstance(error, IotsimError) else RunBroken(error))

    @property
    def end_us(self) -> int:
        """Where the run ended, or how far it is."""
        if self.driver is None:
            return self.start_us
        frontier_us = self.driver.frontier_us
        return frontier_us if self.driver.end_us is None else min(frontier_us, self.driver.end_us)

    def ledgers(self) -> dict[str, LedgerSnapshot]:
        """Return the account of every publisher, by its address."""
        found: dict[str, LedgerSnapshot] = {}
        for i, pump in enumerate(self.pumps):
            name = pump.url if pump.url not in found else f"{pump.url} ({i + 1})"
            found[name] = pump.snapshot()
        return found

    def destinations(self) -> tuple[Destination, ...]:
        """Return where the messages went."""
        board = self._switchboard
        return () if board is None else destinations_of(board.ways, list(self.ledgers()))

    def undelivered(self) -> list[IotsimError]:
        """Return an error for every publisher with messages that nobody acknowledged."""
        found: list[IotsimError] = []
        if not any(pump.has_lost for pump in self.pumps):
            return found
        for url, ledger in self.ledgers().items():
            counts = {
                "refused": ledger.refused,
                # What a simulated fault kept in its device to the end is nobody's failure.
                "dropped": ledger.dropped - ledger.drops.get(STORED, 0),
                "unknown": ledger.unknown,
            }
            if any(counts.values()):
                reasons = [*ledger.refusals.items(), *ledger.drops.items()]
                reasons = [entry for entry in reasons if entry[0] != STORED][:3]
                told = [f"{reason} ×{count:,}" for reason, count in reasons]
                found.append(Undelivered(url, counts, told))
        return found


