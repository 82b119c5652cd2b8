"""A run: the one thing that lives. It owns the clock, the tasks and the sockets.

Methods may be called from any thread; they enter through the run's own loop.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from iotsim import verbs
from iotsim.actions import Action
from iotsim.clock import Speed, check_speed
from iotsim.driver import Driver
from iotsim.errors import BadValue, IotsimError, RunBroken
from iotsim.members import Members
from iotsim.result import Result, facts_html
from iotsim.run_commands import RunCommands
from iotsim.run_state import RunSnapshot, State, Wish, check_pace, facts_of
from iotsim.run_verbs import Rehearsal, RunVerbs, act, answer_of, simulation_of
from iotsim.run_views import RunViews
from iotsim.selectors import Where
from iotsim.stage import Stage
from iotsim.verdict import VALID
from iotsim.works import Works

if TYPE_CHECKING:

    from iotsim.checkpoints import Checkpoint
    from iotsim.conditions import Expectation
    from iotsim.scenario import Scenario

T = TypeVar("T")

STOP_S = 5.0  # a stopped run is over by then, whatever a broker does


class Run(RunVerbs, RunCommands, RunViews):
    """A live run of a fleet or a scenario; made by `Fleet.start` and `Scenario.start`.

    Attributes
    ----------
    fleet : Fleet
    id : str
        Eight hex digits, new for every run; the first part of every message's id.
    state : str
        connecting, running, paused, stopping, stopped or failed.
    actions : list of Action
        What was done to it so far.
    """

    begins = "fleet.start()"  # what to type to have another, for the texts of errors

    def __init__(self, wish: Wish, over: Callable[[Run], None]) -> None:
        self._over = over  # told when it is
        self.fleet = wish.fleet
        self.id = secrets.token_hex(4)
        self.state: State = "connecting"
        self.actions: list[Action] = []
        self._wish = wish
        self._works = Works(wish, self.id)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._connected = asyncio.Event()
        self._cancelled = False
        self._failure: IotsimError | None = None
        self._early: list[Callable[[], None]] = []
        self._rehearsal: Rehearsal | None = None
        self._result: Result | None = None
        self._checkpoints: list[Checkpoint] = []
        self._opening: asyncio.Task[Driver] | None = None
        self._driving: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._main(), name=f"iotsim run {wish.fleet.name}")

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet.name

    @property
    def errors(self) -> tuple[IotsimError, ...]:
        """What has gone wrong so far: failed devices, publishers in trouble."""
        director = self._works.director
        said = () if director is None else director.errors
        return (*said, *self._works.failures.kept, *self._works.undelivered())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing, such as a selector that matches nobody."""
        troubles = [text for pump in self._works.pumps for text in pump.errors]
        said = [action.note for action in self.actions if action.note]
        director = self._works.director
        ended = () if director is None else director.notes
        heard = [text for desk in self._works.desks for text in desk.notes]
        return (*self._works.notes, *said, *ended, *troubles, *heard)

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """What its scenario has expected so far, and whether it was so."""
        director = self._works.director
        return () if director is None else tuple(director.expectations)

    @property
    def scenario(self) -> Scenario | None:
        """What happens to it, if it was started by a scenario."""
        return self._wish.scenario

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._task.done() or self._loop.is_closed()

    @property
    def works(self) -> Works:
        """Its machinery, for who counts what goes on in there."""
        return self._works

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it runs on."""
        return self._loop

    def is_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether this is the loop that it runs on."""
        return self._loop is loop

    def is_wished(self, wish: Wish) -> bool:
        """Return whether this is the run that is asked for; takes over its pace if so."""
        if not self._wish.same_as(wish):
            return False
        if self._wish.speed != wish.speed:  # the cell asks for another pace than the last time
            self._enter(lambda: self._set_speed(wish.speed))
            self._wish = wish
        return True

    def end_soon(self) -> None:
        """Ask it to end, and do not wait for that."""
        self._enter(self._request_stop)

    async def ready(self) -> Run:
        """Wait until every publisher is connected; returns the run.

        Raises
        ------
        ConnectError
            If a broker cannot be reached or refuses us.
        """
        await self._connected.wait()
        if self._failure is not None and self._works.driver is None:
            raise self._failure
        return self

    async def wait(self) -> Result:
        """Wait until the run ends by itself; returns its result."""
        if asyncio.get_running_loop() is not self._loop:
            return await self._elsewhere(self.wait())
        await asyncio.shield(self._task)
        return self._ended()

    @overload
    def stop(self) -> Coroutine[Any, Any, Result]: ...

    @overload
    def stop(self, where: Where) -> Action: ...

    def stop(self, where: Where | None = None) -> Coroutine[Any, Any, Result] | Action:
        """End the run at the next slot boundary: `result = await run.stop()`; or stop devices.

        The result comes whatever happened. Queues are drained, or what is in them is reported,
        within five seconds. `run.stop(where="site=north")` ends devices, and the run goes on.
        """
        if where is None:
            return self._stop()
        return self._act("stop", verbs.stop(where))

    async def _stop(self) -> Result:
        if asyncio.get_running_loop() is not self._loop:
            return await self._elsewhere(self._stop())
        self._request_stop()
        if not self._task.done():
            await asyncio.shield(self._task)
        return self._ended()

    async def _elsewhere(self, asked: Coroutine[Any, Any, Result]) -> Result:
        if self._loop.is_closed():
            asked.close()
            return self._ended()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))

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
        check_pace(self.fleet, factor)
        self._enter(lambda: self._set_speed(factor))

    def snapshot(self) -> RunSnapshot:
        """Return the run as it is now, as plain numbers."""
        works = self._works
        driver, intake = works.driver, works.intake
        judge = None if driver is None else driver.judge
        with intake.lock:
            captured = intake.capture.rows + intake.waiting_rows
            evicted = intake.capture.evicted_rows
        return RunSnapshot(
            state=self.state,
            elapsed_us=self._elapsed_us(),
            speed=self._wish.speed if driver is None else driver.clock.speed,
            devices=works.alive(),
            readings=intake.rows,
            late=0 if driver is None else driver.late_rows,
            lateness_p99_s=math.nan if driver is None else driver.lateness.quantile(0.99),
            captured=captured,
            evicted=evicted,
            errors=works.failures.count + len(self.errors) - len(works.failures.kept),
            publishers=MappingProxyType(works.ledgers()),
            faults=MappingProxyType(works.active(self._elapsed_us())),
            withheld=intake.withheld_rows,
            waiting=0 if works.links is None else works.links.waiting_rows,
            loop_lag_p99_s=math.nan if judge is None else judge.lag.quantile(0.99),
            loop_lag_max_s=math.nan if judge is None else judge.lag.max_s,
            cores=0.0 if judge is None else judge.cores,
            quality=VALID if judge is None else judge.quality,
        )

    def checkpoint(self) -> Checkpoint:
        """Keep the run as it is now, for `Result.branch` to come back to."""
        return self._ask(self._checkpoint)

    def _checkpoint(self) -> Checkpoint:
        from iotsim.checkpoints import CHECKPOINTS_MAX, checkpoint_of

        works = self._works
        if works.driver is None or self.state not in ("running", "paused"):
            raise BadValue("run", self.name, f"cannot be kept now: it is {self.state}",
                           "Await run.ready() first.")
        if len(self._checkpoints) >= CHECKPOINTS_MAX:
            raise BadValue("checkpoint", len(self._checkpoints) + 1, "is one more than a run keeps",
                           f"Keep {CHECKPOINTS_MAX}: a branch begins at the nearest one before it.")
        made = checkpoint_of(works.driver, works.intake, self.actions)
        self._checkpoints.append(made)
        return made

    def _so_far(self) -> Result:
        end_us = self._works.start_us + self._elapsed_us()
        with self._works.intake.lock:
            self._works.intake.flush()
            return self._make_result(end_us) if self._result is None else self._result

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller is on the thread of the run's loop."""
        return threading.get_ident() == self._thread

    def _act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        return act(self, verb, parameters, members)

    def _first_index(self, series: str) -> int:
        return simulation_of(self).population.first_index(series)

    def _ask(self, question: Callable[[], T]) -> T:
        if self.in_own_thread or self._loop.is_closed():
            return question()

        async def there() -> T:
            return question()

        return answer_of(self, asyncio.run_coroutine_threadsafe(there(), self._loop))

    def _enter(self, action: Callable[[], None]) -> None:
        # Whoever calls, what is done to a run is done on its own loop; when that is gone, so is it.
        if self._loop.is_closed():
            return
        if self.in_own_thread:
            action()
        else:
            with suppress(RuntimeError):  # it was closed just now
                self._loop.call_soon_threadsafe(action)

    def _request_stop(self) -> None:
        if self.state in ("stopping", "stopped", "failed"):
            self._works.hurry()
            return
        self.state = "stopping"
        if self._works.driver is not None:
            at_us = self._works.driver.stop()
            self._log("stop", at_us - self._works.start_us)
            if self._driving is not None:  # a device may keep the slot from ending
                self._loop.call_later(STOP_S / 5, self._driving.cancel)
        elif self._opening is not None:
            self._opening.cancel()

    def _pause(self) -> None:
        if self.state == "connecting":
            self._early.append(self._pause)
        if self._works.driver is not None and self.state == "running":
            self._works.driver.clock.pause()
            self.state = "paused"
            self._log("pause", self._begun_us())
            self._works.driver.poke()

    def _resume(self) -> None:
        if self.state == "connecting":
            self._early.append(self._resume)
        if self._works.driver is not None and self.state == "paused":
            self._works.driver.clock.resume()
            self.state = "running"
            self._log("resume", self._begun_us())
            self._works.driver.poke()

    def _set_speed(self, factor: float) -> None:
        if self.state == "connecting":
            self._early.append(lambda: self._set_speed(factor))
        if self._works.driver is not None and self.state in ("running", "paused"):
            self._works.driver.clock.set_speed(factor)
            shown = "max" if math.isinf(factor) else factor
            self._log("speed", self._begun_us(), factor=shown)
            self._works.driver.poke()

    def _log(self, verb: str, at_us: int, **parameters: Any) -> None:
        self.actions.append(Action(verb, at_us, MappingProxyType(parameters)))

    async def _main(self) -> None:
        try:
            if self.state == "stopping":  # stopped before it began
                return
            self._opening = asyncio.create_task(self._works.open())
            driver = await self._opening
            driver.stage = Stage(self.fleet, driver.simulation, self.actions, self._works.chunks,
                                 self._works.totals, self.snapshot, self._works.journal.did)
            self.state = "running"
            self._works.listen()
            for action in self._early:  # what was done while it was connecting
                action()
            self._rehearsal = None
            self._connected.set()
            self._driving = asyncio.create_task(driver.drive())
            await self._driving
        except asyncio.CancelledError:
            self._cancelled = True
            self._halt()
        except Exception as error:  # whatever happens, a run ends with what it has
            self._failure = error if isinstance(error, IotsimError) else RunBroken(error)
            self._works.note(self._failure)
            self._halt()
        finally:
            await self._finish()

    def _halt(self) -> None:
        for task in (self._opening, self._driving):
            if task is not None:
                task.cancel()
        if self._works.driver is not None:
            self._works.driver.stop()

    async def _finish(self) -> None:
        stopped = self.state == "stopping" or self._cancelled or self._failure is not None
        self.state = "stopping"
        try:
            await self._works.wind_up(STOP_S, patient=not stopped)
        finally:
            self.state = "failed" if self._failure is not None else "stopped"
            self._result = self._make_result(self._works.end_us)
            self._connected.set()
            self._over(self)

    def _make_result(self, end_us: int) -> Result:
        works = self._works
        writer = works.intake.writer
        return Result(
            fleet=self.fleet,
            start_us=works.start_us,
            end_us=end_us,
            groups=tuple(works.groups),
            capture=works.intake.capture.freeze(),
            digests=works.intake.digests,
            errors=self.errors,
            actions=tuple(self.actions),
            publishers=MappingProxyType(works.ledgers()),
            path=None if writer is None else writer.path,
            notes=self.notes,
            acks=works.acks if works.pumps else None,
            run_id=self.id,
            expectations=self.expectations,
            history=None if works.driver is None else works.driver.simulation,
            checkpoints=tuple(self._checkpoints),
            scenario="" if self.scenario is None else self.scenario.name,
            quality=VALID if works.driver is None else works.driver.judge.quality,
            destinations=works.destinations(),
            paces=() if works.driver is None else tuple(works.driver.clock.paces),
        )

    def _ended(self) -> Result:
        if self._result is None:  # cancelled from outside before its first step
            self._result = self._make_result(self._works.end_us)
        return self._result

    def _begun_us(self) -> int:
        # Where an action would be: the log is in order of time, whatever the clock says.
        driver = self._works.driver
        if driver is None:
            return 0
        driver.come_to_now()
        return driver.begun_us - self._works.start_us

    def _elapsed_us(self) -> int:
        driver = self._works.driver
        if driver is None:
            return 0
        if self.state in ("stopping", "stopped", "failed"):
            return self._works.end_us - self._works.start_us
        return max(0, driver.clock.now_us() - self._works.start_us)

    def _facts(self) -> Iterator[tuple[str, str]]:
        return facts_of(self.snapshot(), self._failure)

    def __repr__(self) -> str:
        facts = ", ".join(text for _, text in self._facts())
        if self.scenario is None or self.scenario.name == self.name:
            return f"<Run {self.name!r}: {facts}>"
        return f"<Run {self.scenario.name!r} on fleet {self.name!r}: {facts}>"

    def _repr_html_(self) -> str:
        called = self.name
        if self.scenario is not None and self.scenario.name != self.name:
            called = f"{self.scenario.name} on fleet {self.name}"
        return facts_html(f"Run {called}", self._facts())
