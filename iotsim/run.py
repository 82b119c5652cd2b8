"""A run: the one thing that lives. It owns the clock, the tasks and the sockets.

Methods may be called from any thread; they enter through the run's own loop.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from iotsim import verbs
from iotsim.actions import Action
from iotsim.driver import Driver
from iotsim.errors import BadValue, IotsimError, RunBroken
from iotsim.interrupts import interrupts
from iotsim.members import Members
from iotsim.own_loop import Home, Once
from iotsim.result import Result, facts_html
from iotsim.run_commands import RunCommands
from iotsim.run_home import RunHome
from iotsim.run_list import end_interrupted
from iotsim.run_pace import RunPace
from iotsim.run_state import RunSnapshot, State, Wish, facts_of
from iotsim.run_verbs import Rehearsal, RunVerbs, act, simulation_of
from iotsim.run_views import RunViews
from iotsim.selectors import Where
from iotsim.stage import Stage
from iotsim.verdict import VALID
from iotsim.works import Works

if TYPE_CHECKING:

    from iotsim.checkpoints import Checkpoint
    from iotsim.conditions import Expectation
    from iotsim.scenario import Scenario

STOP_S = 5.0  # a stopped run is over by then, whatever a broker does


class Run(RunHome, RunPace, RunVerbs, RunCommands, RunViews):
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

    def __init__(
        self, wish: Wish, over: Callable[[Run], None], home: Home | None = None
    ) -> None:
        self._over = over  # told when it is
        self._home = Home() if home is None else home
        self.fleet = wish.fleet
        self.id = secrets.token_hex(4)
        self.state: State = "connecting"
        self.actions: list[Action] = []
        self._wish = wish
        self._works = Works(wish, self.id)
        self._connected, self._gone = Once(), Once()
        self._cancelled = self._leaving = False
        self._failure: IotsimError | None = None
        self._early: list[Callable[[], None]] = []
        self._rehearsal: Rehearsal | None = None
        self._result: Result | None = None
        self._checkpoints: list[Checkpoint] = []
        self._opening: asyncio.Task[Driver] | None = None
        self._driving: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._main(), name=f"iotsim run {wish.fleet.name}")
        self._task.add_done_callback(lambda _: self._gone.happen())

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet.name

    @property
    def errors(self) -> tuple[IotsimError, ...]:
        """What has gone wrong so far: failed devices, publishers in trouble."""
        return self._look(self._errors)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing, such as a selector that matches nobody."""
        return self._look(self._notes)

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
        return self._task.done() or self._home.closed

    @property
    def leaving(self) -> bool:
        """Whether somebody has asked it to end."""
        return self._leaving

    @property
    def works(self) -> Works:
        """Its machinery, for who counts what goes on in there."""
        return self._works

    def is_wished(self, wish: Wish) -> bool:
        """Return whether this is the run that is asked for; takes over its pace if so."""
        if not self._wish.same_as(wish):
            return False
        if self._wish.speed != wish.speed:  # the cell asks for another pace than the last time
            self._enter(lambda: self._set_speed(wish.speed))
            self._wish = wish
        return True

    def at_end(self, then: Callable[[], object]) -> None:
        """Do something when it is over, on its loop: it is the last thing that happens there.

        If it is over already, it is done at once, by the caller.
        """
        def there() -> None:
            if self._task.done():
                then()
            else:
                self._task.add_done_callback(lambda _: then())

        self._ask(there)

    def end_soon(self) -> None:
        """Ask it to end, and do not wait for that."""
        if self._home.here and not self._home.closed:
            self._request_stop()
        else:
            self._home.enter(self._request_stop)

    async def ready(self) -> Run:
        """Wait until every publisher is connected; returns the run.

        Raises
        ------
        ConnectError
            If a broker cannot be reached or refuses us.
        """
        await self._happened(self._connected)
        if self._failure is not None and self._works.driver is None:
            raise self._failure
        if not self._connected.happened:
            raise BadValue("run", self.name, "has ended: its event loop is closed",
                           f"Start it again: {self.begins}.")
        return self

    async def wait(self) -> Result:
        """Wait until the run ends by itself; returns its result.

        A kernel's interrupt, or Ctrl-C in a script, ends the run; to cancel this in another way,
        such as by a time limit, does not. In a script: `asyncio.run(run.wait())`.
        """
        with interrupts() as interrupted:
            try:
                await self._happened(self._gone)
            except asyncio.CancelledError as error:
                if interrupted():
                    await end_interrupted(self, error)
                raise
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
        self.end_soon()
        await self._happened(self._gone)
        return self._ended()

    def again(self) -> Run:
        """Start another run, as this one was asked for, now that it is over; returns that.

        It begins now, unless a start was given, and runs where this one did: on the same loop, or
        on a new one of its own.

        Raises
        ------
        BadValue
            If this one is not over, or the loop that it was on is closed.
        NameInUse
            If something else is live under its name.
        """
        from iotsim.live_runs import start_wish

        if not self.ended:
            raise BadValue("run", self.name, f"is not over (it is {self.state})",
                           "Stop it first: await run.stop().")
        if self._home.own:
            return start_wish(self._wish)
        if self._home.closed:
            raise BadValue("run", self.name, "cannot begin again: its event loop is closed",
                           f"Start it anew: {self.begins}.")
        return self._ask(lambda: start_wish(self._wish))

    def snapshot(self) -> RunSnapshot:
        """Return the run as it is now, as plain numbers."""
        return self._look(self._snapshot)

    def _snapshot(self) -> RunSnapshot:
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
        return self._look(self._result_so_far)

    def _result_so_far(self) -> Result:
        end_us = self._works.start_us + self._elapsed_us()
        with self._works.intake.lock:
            self._works.intake.flush()
            return self._make_result(end_us) if self._result is None else self._result

    def _errors(self) -> tuple[IotsimError, ...]:
        director = self._works.director
        said = () if director is None else director.errors
        return (*said, *self._works.failures.kept, *self._works.undelivered())

    def _notes(self) -> tuple[str, ...]:
        troubles = [text for pump in self._works.pumps for text in pump.errors]
        said = [action.note for action in self.actions if action.note]
        director = self._works.director
        ended = () if director is None else director.notes
        heard = [text for desk in self._works.desks for text in desk.notes]
        return (*self._works.notes, *said, *ended, *troubles, *heard)

    def _act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        return act(self, verb, parameters, members)

    def _first_index(self, series: str) -> int:
        return simulation_of(self).population.first_index(series)

    def _request_stop(self) -> None:
        self._leaving = True
        if self.state in ("stopping", "stopped", "failed"):
            self._works.hurry()
            return
        self.state = "stopping"
        if self._works.driver is not None:
            at_us = self._works.driver.stop()
            self._log("stop", at_us - self._works.start_us)
            if self._driving is not None:  # a device may keep the slot from ending
                self._home.loop.call_later(STOP_S / 5, self._driving.cancel)
        elif self._opening is not None:
            self._opening.cancel()

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
            self._connected.happen()
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
            self._connected.happen()
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
