"""What can be done to the devices of a live run: the verbs, as they are spelled everywhere.

Each takes effect at the first instant that nothing has begun, and returns the action with that
instant. They may be called from any thread; they enter through the run's own loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from iotsim import verbs
from iotsim.actions import Action
from iotsim.errors import BadValue, IotsimError
from iotsim.members import Members, Script, members_of
from iotsim.profiles import Profile
from iotsim.selectors import Where, select
from iotsim.units import Duration

if TYPE_CHECKING:
    from iotsim.driver import Driver
    from iotsim.run import Run

ANSWER_S = 10.0  # how long another thread waits for the run's loop


class RunVerbs:
    """The verbs of a run."""

    __slots__ = ()

    def inject(
        self, fault: str, where: Where = "all", duration: Duration | None = None, *,
        reason: str | None = None, parameters: Mapping[str, Any] | None = None, **more: Any,
    ) -> Action:
        """Break something on purpose.

        Parameters
        ----------
        fault : str
            Its name, such as `disconnect`, `offset` or `packet_loss`; in any case.
        where : selector
        duration : duration, optional
            Of simulated time; until it is cleared if not given.
        reason : str, optional
            For people; it stands in the log and in the events.
        parameters, **more
            Of the fault.

        Raises
        ------
        IotsimError
            If the fault, a parameter or the selector cannot be, or the run has ended.
        """
        given = {**(parameters or {}), **more}
        return self._act("inject", verbs.inject(fault, where, duration, reason, given))

    def clear(self, fault: str | None = None, where: Where = "all") -> Action:
        """End faults of a name, or all of them, before their time."""
        return self._act("clear", verbs.clear(fault, where))

    def set(
        self, where: Where = "all", every: Duration | None = None,
        fields: Mapping[str, Any] | None = None, **more: Any,
    ) -> Action:
        """Change the interval, or parameters of fields: `run.set(temperature={"mean": 30})`."""
        return self._act("set", verbs.set_(where, every, {**(fields or {}), **more}))

    def suspend(self, where: Where = "all", duration: Duration | None = None) -> Action:
        """Let devices be silent: until `clear("suspend")`, or for a time."""
        return self._act("inject", verbs.inject("suspend", where, duration))

    def add(
        self, device: str | Path | Profile | Script, *, count: int = 1,
        labels: Mapping[str, str] | None = None, every: Duration | None = None,
        id: str | None = None,
    ) -> Action:
        """Let more devices begin; see `Fleet.add`. Ids are never reused."""
        members = members_of(device, count=count, labels=labels, every=every, id=id,
                             first=self._first_index)
        return self._act("add", verbs.added(members), members)

    def log(self, text: str) -> Action:
        """Put a line into the log."""
        return self._act("log", verbs.log(text))

    def _act(
        self, verb: str, parameters: Mapping[str, Any], members: Members | None = None
    ) -> Action:
        raise AssertionError("a run has its own")

    def _first_index(self, type_name: str) -> int:
        raise AssertionError("a run has its own")


def act(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> Action:
    """Do something to a run, on its own loop, whoever asks."""
    if run.in_own_thread:
        return _act_here(run, verb, parameters, members)

    async def there() -> Action:
        return _act_here(run, verb, parameters, members)

    if run._loop.is_closed():
        raise _ended(run)
    answer = asyncio.run_coroutine_threadsafe(there(), run._loop)
    try:
        return answer.result(ANSWER_S)
    except TimeoutError:
        answer.cancel()
        raise IotsimError(f"run {run.name!r} did not answer for {ANSWER_S:g} s: its loop is busy. "
                          "Was it asked from a thread that the loop waits for?") from None


def _act_here(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> Action:
    driver = run._works.driver
    if run.state == "connecting":
        where = parameters.get("where", "all")
        found = select(where, run._works.groups)
        run._early.append(lambda: _act_early(run, verb, parameters, members))
        count = None if verb == "log" else found.count if members is None else members.count
        return Action(verb, 0, MappingProxyType(dict(parameters)), count, found.note, members)
    if driver is None or run.state not in ("running", "paused"):
        raise _ended(run)
    if members is not None:  # two threads may have asked at the same time
        members, parameters = _numbered(driver, members)
    return driver.act(verb, parameters, members)


def _numbered(driver: Driver, members: Members) -> tuple[Members, dict[str, Any]]:
    first = driver.simulation.population.first_index(members.type)
    numbered = replace(members, first=first)
    return numbered, verbs.added(numbered)


def _act_early(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> None:
    # What was done while it was connecting; nobody waits for an answer any more.
    driver = run._works.driver
    assert driver is not None
    if members is not None:
        members, parameters = _numbered(driver, members)
    try:
        driver.act(verb, parameters, members)
    except IotsimError as error:
        run._works.note(error)


def _ended(run: Run) -> BadValue:
    return BadValue("run", run.name, f"has ended (it is {run.state})",
                    "Start it again: fleet.start().")
