"""What can be done to the devices of a live run: the verbs, as they are spelled everywhere.

Each takes effect at the first instant that nothing has begun, and returns the action with that
instant. They may be called from any thread; they enter through the run's own loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from iotsim import verbs
from iotsim.actions import Action
from iotsim.engine.deeds import Deeds
from iotsim.engine.population import Population
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue, IotsimError
from iotsim.members import Members, Script, members_of
from iotsim.profiles import Profile
from iotsim.readings import Group, Ints
from iotsim.seeding import Words
from iotsim.selectors import Where
from iotsim.units import Duration

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.run import Run


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
        given = verbs.merged(parameters, more)
        return self._act("inject", verbs.inject(fault, where, duration, reason, given))

    def clear(self, fault: str | None = None, where: Where = "all") -> Action:
        """End faults of a name, or all of them, before their time."""
        return self._act("clear", verbs.clear(fault, where))

    def set(
        self, where: Where = "all", every: Duration | None = None,
        fields: Mapping[str, Any] | None = None, **more: Any,
    ) -> Action:
        """Change the interval, or parameters of fields: `run.set(temperature={"mean": 30})`."""
        return self._act("set", verbs.set_(where, every, verbs.merged(fields, more, "fields")))

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

    def _first_index(self, series: str) -> int:
        raise AssertionError("a run has its own")


def act(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> Action:
    """Do something to a run, on its own loop, whoever asks."""
    if run.ended:
        raise _ended(run)
    return run._ask(lambda: _act_here(run, verb, parameters, members))


class _Crowd(Population):
    def keys(self, slots: Ints) -> Words:
        return np.zeros(len(slots), dtype=np.uint64)  # nobody draws anything


class Rehearsal(Simulation):
    """The devices of a run that is not connected yet, without anything that steps them.

    What is done to the run meanwhile is tried on it, so that a mistake is an error at the call.
    """

    def __init__(self, fleet: Fleet, groups: Sequence[Group]) -> None:
        super().__init__([], fleet.seed, 0, parts=lambda group: [])
        self.population = _Crowd(fleet.seed)
        self.deeds = Deeds(self)
        for member, group in zip(fleet.members, groups, strict=True):
            self.take_in(member, group, 0)

    def _add_cast(self, member: Members, group: Group, slots: Ints, at_us: int) -> None:
        pass  # nothing of a script runs


def simulation_of(run: Run) -> Simulation:
    """Return the devices of a run, or those that its actions are tried on until it has some."""
    if run._works.driver is not None and run.state != "connecting":
        return run._works.driver.simulation
    if run._rehearsal is None:
        run._rehearsal = Rehearsal(run.fleet, run._works.groups)
    return run._rehearsal


def _act_here(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> Action:
    driver = run._works.driver
    if run.state == "connecting":
        if members is not None:
            members, parameters = _numbered(simulation_of(run), members)
        tried = Action(verb, 0, MappingProxyType(dict(parameters)), members=members)
        if tried.is_content:
            tried = simulation_of(run).act(tried)
        run._early.append(lambda: _act_early(run, verb, parameters, members))
        return tried
    if driver is None or run.state not in ("running", "paused"):
        raise _ended(run)
    if members is not None:  # two threads may have asked at the same time
        members, parameters = _numbered(driver.simulation, members)
    try:
        return driver.act(verb, parameters, members)
    except IotsimError as error:
        run._works.journal.failed(verb, error)
        raise


def _numbered(simulation: Simulation, members: Members) -> tuple[Members, dict[str, Any]]:
    first = simulation.population.first_index(members.series)
    numbered = replace(members, first=first)
    return numbered, verbs.added(numbered)


def _act_early(
    run: Run, verb: str, parameters: Mapping[str, Any], members: Members | None
) -> None:
    # What was done while it was connecting; nobody waits for an answer any more.
    driver = run._works.driver
    assert driver is not None
    if members is not None:
        members, parameters = _numbered(driver.simulation, members)
    try:
        driver.act(verb, parameters, members)
    except IotsimError as error:
        run._works.note(error)


def _ended(run: Run) -> BadValue:
    why = f"has ended (it is {run.state})"
    if run._failure is not None:
        why = f"has failed: {str(run._failure).rstrip('.')}"
    return BadValue("run", run.name, why, f"Start it again: {run.begins}.")
