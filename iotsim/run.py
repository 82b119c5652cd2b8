"""A run: the one thing that lives. It owns the clock, the tasks and the sockets.

`start_run` begins one in the background of the running loop, `run` awaits one to its end. A run is
known by its fleet's name: starting an equal fleet again gives the same run. Methods may be called
from any thread; they enter through the run's own loop.
"""

from __future__ import annotations

import asyncio
import html
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from iotsim import frames
from iotsim.actions import Action
from iotsim.arrow import Writer
from iotsim.capture import Bound, Capture
from iotsim.clock import PacedClock, Speed, check_speed, wall_us
from iotsim.digest import Digest
from iotsim.driver import Driver
from iotsim.engine.live import LiveKernel
from iotsim.engine.simulation import Failures, Simulation
from iotsim.errors import IotsimError, NameInUse, NoLoop, RunBroken, Undelivered
from iotsim.feeders import Switchboard
from iotsim.intake import Intake
from iotsim.offline import kinds_of
from iotsim.outlets import Route, routes_of
from iotsim.publishers.ledger import LedgerSnapshot
from iotsim.publishers.pump import Pump
from iotsim.readings import Group
from iotsim.result import Result
from iotsim.run_state import RunSnapshot, State, Wish, wish_of
from iotsim.units import Duration, Instant, clock_text

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.fleet import Fleet

STOP_S = 5.0  # a stopped run is over by then, whatever a broker does
DRAIN_S = 30.0  # a run that ends by itself waits so long for its brokers
_LIVE: dict[str, Run] = {}


class Run:
    """A live run of a fleet; made by `Fleet.start`."""

    def __init__(self, wish: Wish) -> None:
        self.fleet = wish.fleet
        self.id = secrets.token_hex(4)
        self.state: State = "connecting"
        self.actions: list[Action] = []
        self.notes: list[str] = []
        self._wish = wish
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._failures = Failures()
        self._pumps: list[Pump] = []
        self._routes: list[Route] = []
        self._driver: Driver | None = None
        self._intake: Intake | None = None
        self._connected = asyncio.Event()
        self._failure: IotsimError | None = None
        self._groups: list[Group] = []
        self._result: Result | None = None
        self._opening: asyncio.Task[Driver] | None = None
        self._task = asyncio.create_task(self._main(), name=f"iotsim run {wish.fleet.name}")

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet.name

    @property
    def errors(self) -> tuple[IotsimError, ...]:
        """What has gone wrong so far: failed devices, publishers in trouble."""
        return (*self._failures.kept, *self._undelivered())

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._task.done()

    async def ready(self) -> Run:
        """Wait until every publisher is connected; returns the run.

        Raises
        ------
        ConnectError
            If a broker cannot be reached or refuses us.
        """
        await self._connected.wait()
        if self._failure is not None and self._driver is None:
            raise self._failure
        return self

    async def wait(self) -> Result:
        """Wait until the run ends by itself; returns its result."""
        await asyncio.shield(self._task)
        return self._ended()

    async def stop(self) -> Result:
        """End the run at the next slot boundary; returns what it left, whatever happened.

        Queues are drained, or what is in them is reported, within five seconds.
        """
        if threading.get_ident() != self._thread or asyncio.get_running_loop() is not self._loop:
            future = asyncio.run_coroutine_threadsafe(self.stop(), self._loop)
            return await asyncio.wrap_future(future)
        self._request_stop()
        if not self._task.done():
            await asyncio.shield(self._task)
        return self._ended()

    def pause(self) -> None:
        """Let simulated time stand still."""
        self._enter(self._pause)

    def resume(self) -> None:
        """Let simulated time go on."""
        self._enter(self._resume)

    def set_speed(self, speed: Speed) -> None:
        """Change the pace; never the content.

        Parameters
        ----------
        speed : float or "max"
            Simulated seconds per real second.
        """
        factor = check_speed(speed)
        self._enter(lambda: self._set_speed(factor))

    def snapshot(self) -> RunSnapshot:
        """Return the run as it is now, as plain numbers."""
        driver, intake = self._driver, self._intake
        capture = None if intake is None else intake.capture
        return RunSnapshot(
            state=self.state,
            elapsed_us=self._elapsed_us(),
            speed=self._wish.speed if driver is None else driver.clock.speed,
            devices=len(self.fleet),
            readings=0 if intake is None else intake.rows,
            late=0 if driver is None else driver.late_rows,
            lateness_p99_s=float("nan") if driver is None else driver.lateness.quantile(0.99),
            captured=0 if capture is None else capture.rows,
            evicted=0 if capture is None else capture.evicted_rows,
            errors=self._failures.count + len(self._undelivered()),
            publishers=self._ledgers(),
        )

    def frame(
        self,
        *,
        device_type: str | None = None,
        fields: Any = None,
        last: Duration | None = None,
        tidy: bool = False,
    ) -> pd.DataFrame:
        """Return the readings captured so far; see `Result.frame`."""
        if self._result is not None:
            return self._result.frame(device_type=device_type, fields=fields, last=last, tidy=tidy)
        if self._intake is None:
            return frames.frame(self._groups, [], fields=None, tidy=tidy)
        self._intake.flush()
        end_us = self._start_us() + self._elapsed_us()
        so_far = self._make_result(end_us, self._intake)
        return so_far.frame(device_type=device_type, fields=fields, last=last, tidy=tidy)

    # What follows runs on the run's own loop.

    def _enter(self, action: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            action()
        else:
            self._loop.call_soon_threadsafe(action)

    def _request_stop(self) -> None:
        if self.state in ("stopping", "stopped", "failed"):
            return
        self.state = "stopping"
        if self._driver is None:
            if self._opening is not None:
                self._opening.cancel()
        else:
            at_us = self._driver.stop()
            self._log("stop", at_us - self._start_us())

    def _pause(self) -> None:
        if self._driver is not None and self.state == "running":
            self._driver.clock.pause()
            self.state = "paused"
            self._log("pause", self._elapsed_us())
            self._driver.poke()

    def _resume(self) -> None:
        if self._driver is not None and self.state == "paused":
            self._driver.clock.resume()
            self.state = "running"
            self._log("resume", self._elapsed_us())
            self._driver.poke()

    def _set_speed(self, factor: float) -> None:
        if self._driver is not None and self.state in ("running", "paused"):
            self._driver.clock.set_speed(factor)
            self._log("speed", self._elapsed_us(), factor="max" if factor == float("inf")
                      else factor)
            self._driver.poke()

    def _log(self, verb: str, at_us: int, **parameters: Any) -> None:
        self.actions.append(Action(verb, at_us, MappingProxyType(parameters)))

    async def _main(self) -> None:
        try:
            if self.state == "stopping":  # stopped before it began
                return
            self._opening = asyncio.create_task(self._open())
            driver = await self._opening
            self.state = "running"
            self._connected.set()
            await driver.drive()
        except asyncio.CancelledError:
            if self._driver is not None:
                self._driver.stop()
        except IotsimError as error:
            self._fail(error)
        finally:
            await self._finish()

    def _fail(self, error: IotsimError) -> None:
        self._failure = error
        self._failures.add(error)
        if self._driver is not None:
            self._driver.stop()

    async def _open(self) -> Driver:
        fleet, wish = self.fleet, self._wish
        self._groups = [member.group(i) for i, member in enumerate(fleet.members)]
        self._routes, self.notes = routes_of(fleet.outlets, fleet.members, self._groups)
        writer = None if wish.to is None else Writer(wish.to, self._groups, kinds_of(fleet))
        self._pumps = [
            Pump(route.publisher, devices=route.devices, run_id=f"{self.id}-{i}")
            for i, route in enumerate(self._routes)
        ]
        for pump in self._pumps:
            await pump.open()
        switchboard = Switchboard(self._routes, self._pumps, fleet.members, self._groups, self.id,
                                  self._moved)
        switchboard.prepare(self._groups)
        start_us = wall_us() if wish.start_us is None else wish.start_us
        simulation = Simulation(
            fleet.members, fleet.seed, start_us, groups=self._groups, parts=switchboard.parts,
            make_kernel=lambda failed: LiveKernel(failed, self._is_virtual),
        )
        simulation.failures = self._failures
        self._switchboard = switchboard
        self._intake = Intake(Digest(start_us), Capture(wish.bound), writer)
        end_us = None if wish.duration_total_us is None else start_us + wish.duration_total_us
        clock = PacedClock(start_us, wish.speed)
        self._driver = Driver(simulation, clock, self._intake, switchboard, end_us)
        return self._driver

    def _moved(self) -> None:
        if self._driver is not None:
            self._driver.moved()

    def _is_virtual(self) -> bool:
        # At the end, a party that waits for the outside world holds nobody up any more.
        driver = self._driver
        return driver is not None and driver.clock.virtual and self.state != "stopping"

    async def _finish(self) -> None:
        try:
            if self._driver is not None:
                await self._wind_up(self._driver)
            else:
                for pump in self._pumps:
                    await pump.close(STOP_S / 2)
        except Exception as error:  # a run always ends, with what it has
            self._failures.add(error if isinstance(error, IotsimError) else RunBroken(error))
        self.state = "failed" if self._failure is not None else "stopped"
        self._connected.set()
        self._result = self._build_result()
        if _LIVE.get(self.name) is self:
            del _LIVE[self.name]

    async def _wind_up(self, driver: Driver) -> None:
        stopped = self.state == "stopping" or self._failure is not None
        self.state = "stopping"
        budget_s = STOP_S if stopped else DRAIN_S
        await driver.finish(budget_s * 0.4)
        for pump in self._pumps:
            pump.stop_admission()
        await driver.step_rest()
        await driver.finish(0.5)
        await self._switchboard.end()
        await asyncio.gather(*(pump.close(budget_s * 0.4) for pump in self._pumps))
        kernel = driver.simulation.kernel
        if isinstance(kernel, LiveKernel):
            await kernel.end()
        intake = self._intake
        assert intake is not None
        intake.flush()
        if intake.writer is not None:
            intake.writer.close()

    def _build_result(self) -> Result:
        if self._driver is None or self._intake is None:
            start_us = self._wish.start_us or 0
            return self._make_result(start_us, Intake(Digest(start_us), Capture(Bound()), None))
        return self._make_result(self._driver.end_us or self._driver.frontier_us, self._intake)

    def _make_result(self, end_us: int, intake: Intake) -> Result:
        return Result(
            fleet=self.fleet,
            start_us=intake.digests.stretches.start_us,
            end_us=end_us,
            groups=tuple(self._groups),
            capture=intake.capture.freeze(),
            digests=intake.digests,
            errors=self.errors,
            actions=tuple(self.actions),
            publishers=MappingProxyType(self._ledgers()),
            path=None if intake.writer is None else intake.writer.path,
        )

    def _ended(self) -> Result:
        assert self._result is not None
        return self._result

    def _start_us(self) -> int:
        return 0 if self._driver is None else self._driver.simulation.start_us

    def _elapsed_us(self) -> int:
        if self._driver is None:
            return 0
        if self.state in ("stopping", "stopped", "failed"):
            return self._driver.frontier_us - self._start_us()
        return max(0, self._driver.clock.now_us() - self._start_us())

    def _ledgers(self) -> dict[str, LedgerSnapshot]:
        found: dict[str, LedgerSnapshot] = {}
        for i, pump in enumerate(self._pumps):
            name = pump.url if pump.url not in found else f"{pump.url} ({i + 1})"
            found[name] = pump.snapshot()
        return found

    def _undelivered(self) -> list[IotsimError]:
        found: list[IotsimError] = []
        for url, ledger in self._ledgers().items():
            counts = {"refused": ledger.refused, "dropped": ledger.dropped,
                      "unknown": ledger.unknown}
            if any(counts.values()):
                reasons = [f"{reason} ×{count:,}" for reason, count
                           in [*ledger.refusals.items(), *ledger.drops.items()][:3]]
                found.append(Undelivered(url, counts, reasons))
        return found

    def _facts(self) -> Iterator[tuple[str, str]]:
        now = self.snapshot()
        pace = "max" if now.speed == float("inf") else f"{now.speed:g}"
        yield "state", f"{now.state} ×{pace}"
        yield "time", clock_text(now.elapsed_us)
        yield "devices", f"{now.devices:,} devices"
        yield "readings", f"{now.readings:,} readings"
        for url, ledger in now.publishers.items():
            yield "publisher", f"{url}: {ledger.acknowledged:,} of {ledger.offered:,} acknowledged"
        if now.late:
            yield "late", f"{now.late:,} late"
        if self._failure is not None:
            yield "error", str(self._failure)
        elif now.errors:
            yield "errors", f"{now.errors} errors"

    def __repr__(self) -> str:
        return f"<Run {self.name!r}: {', '.join(text for _, text in self._facts())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._facts()
        )
        return f"<div><b>Run {html.escape(self.name)}</b><table>{rows}</table></div>"


def start_run(
    fleet: Fleet, duration: Duration | None, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None, replace: bool = False,
) -> Run:
    """Start a run in the background; see `Fleet.start`."""
    wish = wish_of(fleet, duration, speed, start, capture, to)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise NoLoop("start()", f"asyncio.run({fleet.name}.run(...))") from None
    live = _LIVE.get(fleet.name)
    if live is not None and (live._loop.is_closed() or live.ended):
        live = None
    if live is not None and live._loop is loop and live._wish.same_as(wish):
        return live
    if live is not None:
        if not replace:
            raise NameInUse(fleet.name)
        live._enter(live._request_stop)
    run = _LIVE[fleet.name] = Run(wish)
    return run


async def run(
    fleet: Fleet, duration: Duration, *, speed: Speed, start: Instant | None, capture: Any,
    to: str | Path | None,
) -> Result:
    """Run to the end; see `Fleet.run`."""
    wish = wish_of(fleet, duration, speed, start, capture, to)
    live = _LIVE.get(fleet.name)
    if live is not None and not live._loop.is_closed() and not live.ended:
        raise NameInUse(fleet.name)
    mine = _LIVE[fleet.name] = Run(wish)
    try:
        await mine.ready()
        return await mine.wait()
    except asyncio.CancelledError:
        await mine.stop()
        raise


def runs() -> list[Run]:
    """Return the runs that are alive."""
    return [run for run in _LIVE.values() if not run._loop.is_closed() and not run.ended]
