"""Who does what when: a scenario on its way through a run.

A director is asked when it has something to do next, and does it when time stands exactly there.
It never waits and never reads a clock, so that the same things happen offline and live. There are
two: a `Plan` of steps, and a `Playing` of a script (see `iotsim.script`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from iotsim import verbs
from iotsim.conditions import Condition, Expectation
from iotsim.errors import IotsimError
from iotsim.members import Members
from iotsim.units import clock_text

if TYPE_CHECKING:
    from iotsim.stage import Stage

ALL_US = 2**62  # a window that reaches back to the start of any run
ENDLESS_US = 2**62


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a scenario does.

    Attributes
    ----------
    at_us : int
        Since the start.
    verb : str
        add, clear, command, expect, inject, log, set or stop.
    parameters : mapping
        As `iotsim.verbs` gives them, plain JSON; empty for `add`. Of an expect: message, last_us.
    members : Members or None
        What is added; its ids are numbered when it happens.
    condition : Condition or None
        Of an expect.
    """

    at_us: int
    verb: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    members: Members | None = None
    condition: Condition | None = None

    def later(self, by_us: int) -> Step:
        """Return the step at another time."""
        return replace(self, at_us=self.at_us + by_us)


class Ends:
    """When what was done will have ended: the last action, and the faults that run on."""

    def __init__(self) -> None:
        self.last_us = 0
        self._faults: list[tuple[str, Any, int]] = []

    def note(self, verb: str, at_us: int, parameters: Mapping[str, Any]) -> None:
        """Take note of what was done."""
        self.last_us = max(self.last_us, at_us)
        if verb == "inject":
            length_us = parameters.get("duration_us")
            end_us = ENDLESS_US if length_us is None else at_us + length_us
            if length_us is not None:
                self.last_us = max(self.last_us, end_us)
            else:
                self._faults.append((parameters["fault"], parameters["where"], end_us))
        elif verb in ("clear", "stop"):
            name, where = parameters.get("fault"), parameters["where"]
            self._faults = [one for one in self._faults
                            if not (name in (None, one[0]) and where in ("all", one[1]))]

    @property
    def endless(self) -> list[str]:
        """The faults that nobody ends."""
        return [name for name, _, _ in self._faults]


def declared_fields(members: Sequence[Members]) -> dict[str, frozenset[str]]:
    """Return for each field the device types whose profiles have it."""
    found: dict[str, frozenset[str]] = {}
    for member in members:
        for one in member.profile.fields if member.profile is not None else ():
            found[one.name] = found.get(one.name, frozenset()) | {member.type}
    return found


def judged(
    stage: Stage, condition: Condition, at_us: int, message: str | None, last_us: int | None,
    members: Sequence[Members],
) -> Expectation:
    """Return what becomes of an expect now."""
    status, seen = condition.judge(stage.view(at_us, last_us), declared_fields(members))
    return Expectation(at_us, condition.text, message, status, seen, last_us,
                       condition.function is None)


def look_back_us(condition: Condition, at_us: int, last_us: int | None) -> int:
    """Return how long a window of readings a condition looks at."""
    if not condition.reads:
        return 0
    return at_us if last_us is None else min(last_us, at_us)


class Plan:
    """A director of steps that are known beforehand.

    Parameters
    ----------
    name : str
        Of the scenario.
    steps : sequence of Step
        In any order; those of one time in the order they were written.
    end_us : int

    Attributes
    ----------
    expectations : list of Expectation
        What became of those that were looked at.
    errors : list of IotsimError
        What ended the scenario, if anything did; `end_us` is then where it stood.
    """

    def __init__(self, name: str, steps: Sequence[Step], end_us: int) -> None:
        self.expectations: list[Expectation] = []
        self.errors: list[IotsimError] = []
        self.notes: list[str] = []
        self.end_us: int | None = end_us
        self.name = name
        self._steps = sorted(steps, key=lambda step: step.at_us)
        self._place = 0
        self._added: list[Members] = []

    @property
    def next_us(self) -> int | None:
        """When the next step is due; None: there is none."""
        return self._steps[self._place].at_us if self._place < len(self._steps) else None

    @property
    def needs_us(self) -> int:
        """The longest window of readings that an expect looks at."""
        return max((look_back_us(step.condition, step.at_us, step.parameters.get("last_us"))
                    for step in self._steps if step.condition is not None), default=0)

    def act(self, stage: Stage) -> None:
        """Do the steps that are due at exactly `next_us`; one that cannot be ends the scenario."""
        at_us = self.next_us
        while at_us is not None and self.next_us == at_us:
            step = self._steps[self._place]
            self._place += 1
            try:
                self._do(step, stage)
            except IotsimError as error:
                self.errors.append(failed(self.name, at_us, f"{step.verb}: {error}", error))
                self.end_us = at_us
                self.close()

    def close(self) -> None:
        """Do nothing more."""
        self._place = len(self._steps)

    def _do(self, step: Step, stage: Stage) -> None:
        if step.condition is not None:
            given = step.parameters
            self.expectations.append(judged(
                stage, step.condition, step.at_us, given.get("message"), given.get("last_us"),
                [*stage.fleet.members, *self._added]))
        elif step.members is not None:
            numbered = replace(step.members, first=stage.first_index(step.members.series))
            self._added.append(numbered)
            stage.do("add", step.at_us, verbs.added(numbered), numbered)
        else:
            stage.do(step.verb, step.at_us, step.parameters)


def failed(name: str, at_us: int, why: str, cause: BaseException | None) -> IotsimError:
    """Return the error of a scenario that could not go on."""
    error = IotsimError(f"scenario {name!r} failed at {clock_text(at_us)}: {why}")
    error.__cause__ = cause
    return error
