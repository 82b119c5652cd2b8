"""What a scenario says: its verbs, spelled as everywhere, each at the cursor's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from iotsim import verbs
from iotsim.conditions import condition_of
from iotsim.director import Step
from iotsim.errors import BadValue
from iotsim.fleet import Fleet
from iotsim.profiles import Profile
from iotsim.scenario_checks import (
    check_fault,
    check_ids,
    check_number,
    check_set,
    check_where,
    crowd,
    expect_parameters,
    known_fields,
    telling,
)
from iotsim.selectors import Where
from iotsim.units import Duration, duration_text, duration_us, end_us_of

if TYPE_CHECKING:
    from iotsim.members import Script


class ScenarioVerbs:
    """The verbs of a scenario; each returns another one."""

    __slots__ = ()

    name: str
    fleet: Fleet
    script: Any
    steps: tuple[Step, ...]
    lasting_us: int | None
    waited_us: int
    _now_us: int
    _since_us: int
    _telling: tuple[Step, ...]
    _blocks: tuple[tuple[int, int], ...]

    def at(self, time: Duration) -> Self:
        """Return a scenario that goes on at a time since its start; back is allowed.

        A branch cannot go back beyond the moment it began at: that would be another past.
        """
        now_us = duration_us(time, "at", zero=True)
        if now_us < self._since_us:
            begin = duration_text(self._since_us)
            raise BadValue("at", time, f"is before this branch, which begins at {begin}",
                           f"Give {begin} or later, or branch earlier.")
        return self._with(_now_us=now_us)

    def wait(self, duration: Duration) -> Self:
        """Return a scenario that goes on later."""
        now_us = self._now_us + duration_us(duration, "wait")
        end_us_of(0, now_us)
        return self._with(_now_us=now_us, waited_us=max(self.waited_us, now_us))

    def add(
        self,
        device: str | Path | Profile | Script,
        *,
        count: int = 1,
        labels: Mapping[str, str] | None = None,
        every: Duration | None = None,
        id: str | None = None,
    ) -> Self:
        """Return a scenario that adds devices; see `Fleet.add`. Ids are never used twice."""
        everybody = crowd(self.fleet, self._telling)
        added = everybody.add(device, count=count, labels=labels, every=every, id=id).members[-1]
        return self._then(Step(self._now_us, "add", members=replace(added, first=0)))

    def stop(self, where: Where = "all") -> Self:
        """Return a scenario that stops devices, for good."""
        return self._do("stop", verbs.stop(where))

    def inject(
        self,
        fault: Any,
        where: Where = "all",
        duration: Duration | None = None,
        *,
        reason: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Self:
        """Return a scenario that injects a fault.

        Parameters
        ----------
        fault : str
            Its name, in any case.
        where : selector
        duration : duration, optional
            Until it is cleared if not given.
        reason : str, optional
            For people; it stands in the log and in the events.
        parameters, **more
            Of the fault.
        """
        given = verbs.inject(fault, where, duration, reason, verbs.merged(parameters, more))
        check_fault(given, crowd(self.fleet, self._telling).members, self._telling)
        return self._do("inject", given)

    def clear(self, fault: Any = None, where: Where = "all") -> Self:
        """Return a scenario that ends a fault, or all of them."""
        return self._do("clear", verbs.clear(fault, where))

    def set(
        self,
        where: Where = "all",
        every: Duration | None = None,
        fields: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Self:
        """Return a scenario that changes the interval, or the parameters of fields.

        Parameters
        ----------
        where : selector
        every : duration, optional
        fields : mapping of field name to parameters, optional
            What is not named stays; or give them by name, as `temperature={"mean": 25}`.
        """
        given = verbs.set_(where, every, verbs.merged(fields, more, "fields"))
        check_set(given, crowd(self.fleet, self._telling).members, self._telling)
        return self._do("set", given)

    def command(
        self, name: str, where: Where = "all", *, payload: Any = None, id: str | None = None
    ) -> Self:
        """Return a scenario that gives devices a command.

        Parameters
        ----------
        name : str
        where : selector
        payload : JSON value, optional
        id : str, optional
            Numbered if not given.
        """
        return self._do("command", verbs.command(name, where, payload, id))

    def suspend(self, where: Where = "all", duration: Duration | None = None) -> Self:
        """Return a scenario that lets devices rest: `inject("suspend")`."""
        return self.inject("suspend", where, duration)

    def log(self, text: str) -> Self:
        """Return a scenario that writes a line into the log."""
        return self._then(Step(self._now_us, "log", verbs.log(text)))

    def expect(
        self, condition: Any, message: str | None = None, last: Duration | None = None
    ) -> Self:
        """Return a scenario that checks something; that never changes a reading.

        Parameters
        ----------
        condition : str or callable (view) -> bool
            Such as "count() > 100", "mean(temperature) < 30 and faults == 0", "lost == 0".
        message : str, optional
            What it means.
        last : duration, optional
            How far back it looks; to the start if not given.
        """
        known = known_fields(crowd(self.fleet, self._telling).members)
        checked = condition_of(condition, known)
        return self._then(Step(self._now_us, "expect", expect_parameters(message, last),
                               condition=checked))

    def block(self) -> Self:
        """Return a scenario in which a block begins, for `repeat`."""
        return self._with(_blocks=(*self._blocks, (len(self.steps), self._now_us)))

    def repeat(self, times: int) -> Self:
        """Return a scenario in which the innermost block happens so many times in all."""
        if not self._blocks:
            raise BadValue("repeat", times, "has no block", "Begin one with block().")
        if isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise BadValue("repeat", times, "is not a whole number of times", "Give 2 or more.")
        first, begin_us = self._blocks[-1]
        length_us = self._now_us - begin_us
        if length_us <= 0:
            raise BadValue("repeat", times, "follows a block that takes no time",
                           "Let it wait(…) at its end.")
        block = self.steps[first:]
        check_number(len(self.steps) + len(block) * (times - 1))
        end_us_of(0, begin_us + length_us * times)
        turns = range(1, times) if block else ()
        again = [step.later(length_us * i) for i in turns for step in block]
        now_us = begin_us + length_us * times
        made = self._with(steps=(*self.steps, *again), _blocks=self._blocks[:-1], _now_us=now_us,
                          waited_us=max(self.waited_us, now_us))
        made._check_steps(again)
        check_ids(made.fleet, made.steps)
        return made

    def lasting(self, duration: Duration) -> Self:
        """Return a scenario that lasts so long in all."""
        made = self._with(lasting_us=duration_us(duration, "lasting", zero=True))
        made._check_steps(made.steps)
        return made

    def _do(self, verb: str, parameters: Mapping[str, Any]) -> Self:
        check_where(parameters["where"], self.fleet, self._telling)
        return self._then(Step(self._now_us, verb, parameters))

    def _then(self, step: Step) -> Self:
        if self.script is not None:
            raise BadValue("scenario", self.name, f"is a script, so it takes no {step.verb}()",
                           "Say it in the script.")
        check_number(len(self.steps) + 1)
        self._check_steps([step])
        return self._with(steps=(*self.steps, step), _telling=telling(self._telling, step))

    def _check_steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if self.lasting_us is not None and step.at_us > self.lasting_us:
                raise BadValue("lasting", duration_text(self.lasting_us), "ends before "
                               f"{step.verb}() at {duration_text(step.at_us)}",
                               "Let it last longer, or do it earlier.")

    def _with(self, **changes: Any) -> Self:
        raise AssertionError("a scenario has its own")
