"""A scenario: what happens to a fleet, and when. Frozen; every verb returns a new one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from iotsim.director import ALL_US, Ends, Plan, Step
from iotsim.errors import BadValue
from iotsim.fleet import Fleet
from iotsim.gateway.spec import Gateway
from iotsim.members import script_hash
from iotsim.registry import door
from iotsim.scenario_checks import check_ids, check_script, check_selectors, telling
from iotsim.scenario_html import steps_html
from iotsim.scenario_verbs import ScenarioVerbs
from iotsim.selectors import Where
from iotsim.units import (
    DEFAULT_START,
    Instant,
    duration_text,
    end_us_of,
    instant_text,
    instant_us,
)

if TYPE_CHECKING:
    from iotsim.clock import Speed
    from iotsim.progress import Progress
    from iotsim.result import Result
    from iotsim.run import Run
    from iotsim.stage import Director

Telling: TypeAlias = "Callable[[Any], Coroutine[Any, Any, None]]"
Block: TypeAlias = "tuple[int, int]"

CAPTURE_US = 600_000_000
_FIELDS = ("name", "fleet", "script", "start_us", "steps", "lasting_us", "waited_us", "_now_us",
           "_since_us", "_telling", "_blocks", "_origin")


@dataclass(frozen=True, slots=True, repr=False, init=False, eq=False)
class Scenario(ScenarioVerbs):
    """What happens to a fleet, and when.

    `at` and `wait` move a cursor through simulated time; the other verbs happen where it stands.
    Without `lasting` a scenario ends when its last action, wait and fault have ended; steps with a
    fault that nothing ends need it. A script ends where it returns, or with its last timed fault;
    a note says so if another fault was still active.

    Parameters
    ----------
    name : str
    fleet : Fleet or Gateway, optional
        Who is there from the start; nobody if not given.
    script : coroutine function, optional
        `async def run(ctx)`, instead of steps.
    start : instant, optional
        Where simulated time begins, unless a run is told otherwise.

    Examples
    --------
    >>> from iotsim import Fleet
    >>> fleet = Fleet("plant", seed=42).add("pump", count=20)
    >>> Scenario("less", fleet).at("5m").stop(where="fraction=10%").lasting("30m")
    <Scenario 'less': 1 step over 30m on fleet 'plant', 20 devices>
    """

    name: str
    fleet: Fleet
    script: Telling | None
    start_us: int | None
    steps: tuple[Step, ...]
    lasting_us: int | None
    waited_us: int
    _now_us: int
    _since_us: int  # a branch cannot change what came before
    _telling: tuple[Step, ...]  # those that checks look at: so that many steps take no square
    _blocks: tuple[Block, ...]
    _origin: Any  # a Checkpoint, from `Result.branch`: only how fast it is depends on it

    def __init__(
        self, name: str, fleet: Fleet | Gateway | None = None, *, script: Telling | None = None,
        start: Instant | None = None,
    ) -> None:
        whole = Fleet(name) if fleet is None else fleet
        if isinstance(whole, Gateway):
            whole = whole.fleet()
        Fleet(name, seed=0)  # the rules of names are those of fleets
        if not isinstance(whole, Fleet):
            raise BadValue("fleet", fleet, "is not a fleet", "Give a Fleet, or leave it out.")
        check_script(script)
        given = {"name": name, "fleet": whole, "script": script, "steps": (), "lasting_us": None,
                 "start_us": None if start is None else instant_us(start), "waited_us": 0,
                 "_now_us": 0, "_since_us": 0, "_telling": (), "_blocks": (), "_origin": None}
        for key in _FIELDS:
            object.__setattr__(self, key, given[key])

    @classmethod
    def load(cls, source: str | Path) -> Scenario:
        """Return the scenario in a Python file, or the one of that name that comes with iotsim.

        The file is code, and is run. It holds `async def run(ctx)`, or `scenario = Scenario(...)`;
        and `fleet = Fleet(...)` if there is one.

        Parameters
        ----------
        source : str or Path
            A path if it is a `Path`, has a separator, or ends in .py; else a name.
        """
        from iotsim.scenario_files import load

        return load(source)

    def publish_to(
        self, url: str, topic: str | None = None, *, where: Where = "all", **options: Any
    ) -> Scenario:
        """Return a scenario whose fleet publishes to a broker, too; see `Fleet.publish_to`."""
        return self._with(fleet=self.fleet.publish_to(url, topic, where=where, **options))

    def listen_to(
        self, url: str, topic: str | None = None, answer: str | None = None, *,
        where: Where = "all", **options: Any,
    ) -> Scenario:
        """Return a scenario whose fleet takes commands from a broker; see `Fleet.listen_to`."""
        heard = self.fleet.listen_to(url, topic, answer, where=where, **options)
        return self._with(fleet=heard)

    def with_seed(self, seed: int) -> Scenario:
        """Return a scenario of the same devices under another seed."""
        other = Fleet(self.fleet.name, seed=seed)
        return self._with(fleet=other._with(members=self.fleet.members, ears=self.fleet.ears,
                                            outlets=self.fleet.outlets))

    def generate(
        self,
        *,
        start: Instant | None = None,
        to: str | Path | None = None,
        progress: Progress = None,
    ) -> Result:
        """Return all readings, as fast as the machine computes; see `Fleet.generate`."""
        from iotsim.offline import generate_scenario

        begin = self._start(start)
        return generate_scenario(self, start=DEFAULT_START if begin is None else begin, to=to,
                                 progress=progress)

    async def run(
        self,
        *,
        speed: Speed = 1,
        start: Instant | None = None,
        capture: Any = None,
        to: str | Path | None = None,
    ) -> Result:
        """Run live to the end; returns what it left.

        Parameters
        ----------
        speed, start, to
            As for `Fleet.run`.
        capture : str or int, optional
            As for `Fleet.run`; if not given ten minutes, and all that its expects look at.
        """
        from iotsim.live_runs import run_scenario

        return await run_scenario(self, speed=speed, start=self._start(start),
                                  capture=self._capture(capture), to=to)

    def start(
        self,
        *,
        speed: Speed = 1,
        start: Instant | None = None,
        capture: Any = None,
        to: str | Path | None = None,
        replace: bool = False,
        thread: bool = False,
    ) -> Run:
        """Start a run in the background of the running event loop; see `Fleet.start` and `run`."""
        from iotsim.live_runs import start_scenario

        return start_scenario(self, speed=speed, start=self._start(start),
                              capture=self._capture(capture), to=to, replace=replace,
                              thread=thread)

    def director(self, start_us: int) -> Director:
        """Return who leads a run that begins at an instant through this scenario, once.

        Raises
        ------
        IotsimError
            If nothing says when it ends, it would go beyond the year 9999, or a selector asks for
            a label that no device has by then.
        """
        end_us = self._checked_end_us()
        if end_us is not None:
            end_us_of(start_us, end_us)
        if self.script is not None:
            from iotsim.script import Playing

            return Playing(self.name, self.script, self.lasting_us)
        assert end_us is not None
        check_ids(self.fleet, self.steps)
        check_selectors(self.name, self.fleet, self.steps, self._origin)
        return Plan(self.name, self.steps, end_us)

    def panel(self) -> Any:
        """Return the widget with its timeline, which generates it or starts it."""
        return door("panel_scenario")(self)

    def plot(self, **options: Any) -> Any:
        """Draw what will happen, and when, before it is run; returns the Axes.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw.
        figsize : (float, float), optional
            Width and height in inches.
        """
        return door("plot_scenario")(self, **options)

    def code(self) -> str:
        """Return Python source that makes an equal scenario and its fleet; no secrets are in it."""
        from iotsim.scenario_code import code

        return code(self)

    def end_us(self) -> int | None:
        """Return where it ends, since its start; None if only running it will show."""
        if self.lasting_us is not None or self.script is not None:
            return self.lasting_us
        ends = Ends()
        for step in sorted(self.steps, key=lambda step: step.at_us):
            ends.note(step.verb, step.at_us, step.parameters)
        return None if ends.endless else max(ends.last_us, self.waited_us)

    def _checked_end_us(self) -> int | None:
        end_us = self.end_us()
        if self.script is not None or end_us:
            return end_us
        why = "has no end: a fault in it is never cleared" if end_us is None else "takes no time"
        raise BadValue("scenario", self.name, why, "Say how long it is, as in .lasting('30m').")

    def _start(self, given: Instant | None) -> Instant | None:
        if given is not None or self.start_us is None:
            return given
        return instant_text(self.start_us)

    def _capture(self, given: Any) -> Any:
        # An expect that looks back further than what is held would judge a part for the whole.
        if given is not None:
            return given
        needs_us = self.director(0).needs_us
        return "all" if needs_us >= ALL_US else duration_text(max(needs_us, CAPTURE_US))

    def _with(self, **changes: Any) -> Scenario:
        if "steps" in changes and "_telling" not in changes:
            nothing: tuple[Step, ...] = ()
            changes["_telling"] = reduce(telling, changes["steps"], nothing)
        copy = object.__new__(Scenario)
        for key in _FIELDS:
            object.__setattr__(copy, key, changes.get(key, getattr(self, key)))
        return copy

    def _content(self) -> tuple[Any, ...]:
        in_time = sorted(self.steps, key=lambda step: step.at_us)
        told = "" if self.script is None else script_hash(self.script)
        return (self.name, self.fleet, told, self.start_us, in_time, self.lasting_us, self.end_us())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scenario):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash((self.name, self.fleet, self.start_us, len(self.steps)))

    def _facts(self) -> Iterator[tuple[str, str]]:
        plural = "" if len(self.steps) == 1 else "s"
        what = f"{len(self.steps):,} step{plural}" if self.script is None else "a script"
        end_us = self.end_us()
        yield "what", what if end_us is None else f"{what} over {duration_text(end_us)}"
        yield "fleet", f"on fleet {self.fleet.name!r}, {len(self.fleet):,} devices"

    def __repr__(self) -> str:
        return f"<Scenario {self.name!r}: {' '.join(text for _, text in self._facts())}>"

    def _repr_html_(self) -> str:
        return steps_html(self.name, self._facts(), self.steps)
