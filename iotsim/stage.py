"""Where a scenario acts: the same object offline and live.

A director (see `iotsim.director`) is asked to act when simulated time stands exactly where it wants
to, and nothing after that has begun. It does things to the simulation here, and looks at it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from iotsim import frames
from iotsim.actions import Action
from iotsim.engine.simulation import Simulation
from iotsim.errors import IotsimError
from iotsim.members import Members
from iotsim.readings import Readings
from iotsim.selectors import Where

if TYPE_CHECKING:
    import pandas as pd

    from iotsim.fleet import Fleet
    from iotsim.run_state import RunSnapshot


class Director(Protocol):
    """Who does what when."""

    @property
    def name(self) -> str:
        """The scenario's; empty if it is none."""

    @property
    def next_us(self) -> int | None:
        """Microseconds since the start at which it wants to act next; None: never again."""

    @property
    def end_us(self) -> int | None:
        """Where the run ends, since the start; None: not known yet."""

    @property
    def needs_us(self) -> int:
        """The longest window of readings that it will look at; 0: none."""

    @property
    def expectations(self) -> list[Any]:
        """What was expected, and whether it was so."""

    @property
    def errors(self) -> list[IotsimError]:
        """Why it could not go on; the run ends there."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the result should know."""

    def act(self, stage: Stage) -> None:
        """Do all that is due at `next_us`."""

    def close(self) -> None:
        """End, wherever it stands."""


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """How many readings there are, how many of them never left, and what went wrong."""

    readings: int
    withheld: int
    errors: int


class View:
    """A run as it is at one instant, for those who expect something of it.

    Attributes
    ----------
    now_s : float
        Simulated seconds since the start.
    devices : int
        How many live.
    by_type, by_state : mapping of str to int
    faults : mapping of str to int
        On how many devices each is active.
    readings, withheld, errors : int
    live : bool
    observed : RunSnapshot or None
        What only a live run knows; None offline.
    """

    def __init__(self, stage: Stage, at_us: int, last_us: int | None) -> None:
        simulation = stage.simulation
        instant_us = stage.start_us + at_us
        people = simulation.population
        people.settle(instant_us)
        self.now_s = at_us / 1e6
        self.by_type = people.by_type(instant_us)
        self.devices = sum(self.by_type.values())
        began = int((people.began_us <= instant_us).sum())
        states = {"running": self.devices, "stopped": began - self.devices}
        self.by_state = {name: count for name, count in states.items() if count}
        self.faults = simulation.deeds.active(instant_us)
        self._stage, self._at_us, self._last_us = stage, at_us, last_us

    @property
    def readings(self) -> int:
        """How many readings were taken."""
        return self._stage.totals().readings

    @property
    def withheld(self) -> int:
        """How many readings never left their device's link."""
        return self._stage.totals().withheld

    @property
    def errors(self) -> int:
        """How many things went wrong."""
        return self._stage.totals().errors

    @property
    def live(self) -> bool:
        """Whether the run is live."""
        return self._stage.snapshot is not None

    @property
    def observed(self) -> RunSnapshot | None:
        """What only a live run knows."""
        return None if self._stage.snapshot is None else self._stage.snapshot()

    def frame(self) -> pd.DataFrame:
        """Return the readings that left in the window before this instant."""
        end_us = self._stage.start_us + self._at_us
        begin_us = self._stage.start_us if self._last_us is None else end_us - self._last_us
        chunks = []
        for chunk in self._stage.chunks():
            times = chunk.time_us
            if len(times) and int(times.max()) >= begin_us and int(times.min()) < end_us:
                chunks.append(chunk.take((times >= begin_us) & (times < end_us)))
        groups = self._stage.simulation.groups
        kinds = {field.name: field.kind for profile in self._stage.simulation.population.profiles
                 if profile is not None for field in profile.fields}
        return frames.frame(groups, chunks, declared=kinds)


class Stage:
    """Where a director acts.

    Parameters
    ----------
    fleet : Fleet
    simulation : Simulation
    actions : list of Action
        The log; what is done is appended to it.
    chunks : callable () -> list of Readings
        What is held of the readings.
    totals : callable () -> Totals
    snapshot : callable () -> RunSnapshot, optional
        Only live.
    settled : callable (Action), optional
        Told of everything that was done.
    """

    def __init__(
        self,
        fleet: Fleet,
        simulation: Simulation,
        actions: list[Action],
        chunks: Callable[[], list[Readings]],
        totals: Callable[[], Totals],
        snapshot: Callable[[], RunSnapshot] | None = None,
        settled: Callable[[Action], None] | None = None,
    ) -> None:
        self.fleet, self.simulation, self.actions = fleet, simulation, actions
        self.chunks, self.totals, self.snapshot = chunks, totals, snapshot
        self._settled = settled

    @property
    def start_us(self) -> int:
        """Where the run began, microseconds since 1970."""
        return self.simulation.start_us

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.simulation.seed

    def do(
        self, verb: str, at_us: int, parameters: Mapping[str, Any],
        members: Members | None = None,
    ) -> Action:
        """Do something at an instant that nothing has been computed beyond, and log it.

        Raises
        ------
        IotsimError
            If it cannot be done; nothing is then changed or logged.
        """
        action = Action(verb, at_us, MappingProxyType(dict(parameters)), members=members)
        if action.is_content:
            action = self.simulation.act(action)
        self.actions.append(action)
        if self._settled is not None:
            self._settled(action)
        return action

    def first_index(self, series: str) -> int:
        """Return the index of the next device of a type; ids are never reused."""
        return self.simulation.population.first_index(series)

    def ids(self, where: Where, at_us: int) -> list[str]:
        """Return who a selector matches at an instant."""
        people = self.simulation.population
        slots, _ = people.select(where, self.start_us + at_us)
        return [people.ids[slot] for slot in slots.tolist()]

    def view(self, at_us: int, last_us: int | None = None) -> View:
        """Return the run as it is at an instant, with the readings of a window before it."""
        return View(self, at_us, last_us)


class Replay:
    """A director that does again what a log says.

    Parameters
    ----------
    actions : list of Action
        Those that change content, in order of time.
    end_us : int or None
        Where the run ends, since its start.
    """

    def __init__(self, actions: list[Action], end_us: int | None) -> None:
        self.end_us, self.needs_us, self.name = end_us, 0, ""
        self.expectations: list[Any] = []
        self.errors: list[IotsimError] = []
        self.notes: list[str] = []
        self._left = list(reversed(actions))

    @property
    def next_us(self) -> int | None:
        """When the next action is due."""
        return self._left[-1].at_us if self._left else None

    def act(self, stage: Stage) -> None:
        """Do all that is due."""
        now_us = self.next_us
        while self._left and self._left[-1].at_us == now_us:
            action = self._left.pop()
            stage.do(action.verb, action.at_us, action.parameters, action.members)

    def close(self) -> None:
        """Nothing to end."""
