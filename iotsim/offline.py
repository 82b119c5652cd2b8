"""A fleet or a scenario offline: as fast as the machine computes, without a loop or a thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iotsim.actions import Action
from iotsim.arrow import Writer
from iotsim.capture import Bound, Capture, common_kind
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue
from iotsim.progress import Progress, bar
from iotsim.readings import Readings
from iotsim.result import Result
from iotsim.stage import Director, Replay, Stage, Totals
from iotsim.units import (
    DEFAULT_START,
    Duration,
    Instant,
    clock_text,
    duration_us,
    end_us_of,
    instant_us,
)

if TYPE_CHECKING:
    from iotsim.checkpoints import Checkpoint
    from iotsim.fleet import Fleet
    from iotsim.scenario import Scenario

WINDOW_ROWS = 1_000_000
WINDOW_US_MIN = 1_000_000
WINDOW_US_IDLE = 3600_000_000
SCRIPT_ROWS = 200_000
SCRIPT_WINDOW_US = 1_000_000


def generate(
    fleet: Fleet,
    duration: Duration,
    *,
    start: Instant | None,
    to: str | Path | None,
    progress: Progress,
) -> Result:
    """Return the result of running a fleet offline; see `Fleet.generate`."""
    check_devices(fleet)
    director = Replay([], duration_us(duration))
    return Offline(fleet, director, _start_of(start), to).run(progress)


def generate_scenario(
    scenario: Scenario,
    *,
    start: Instant | None = None,
    to: str | Path | None = None,
    progress: Progress = None,
) -> Result:
    """Return the result of a scenario offline; see `Scenario.generate`."""
    from iotsim.checkpoints import origin_of

    start_us = _start_of(start)
    found = None if to is not None else origin_of(scenario, start_us)
    origin, left = (None, scenario) if found is None else found
    return Offline(scenario.fleet, left.director(start_us), start_us, to, origin).run(progress)


def _start_of(start: Instant | None) -> int:
    return instant_us(DEFAULT_START if start is None else start)


def check_devices(fleet: Fleet) -> None:
    """Raise if there is nobody to simulate."""
    if not fleet.members:
        raise BadValue("fleet", fleet.name, "has no devices", "Give it some: fleet.add('pump').")


def kinds_of(
    fleet: Fleet, device_type: str | None = None, history: Simulation | None = None
) -> dict[str, str]:
    """Return the kinds of the fields that the profiles of a fleet, or of one type, declare.

    With what was added to it in a run, if its history is given.
    """
    kinds: dict[str, str] = {}
    members = fleet.members if history is None else history.population.members
    for member in members:
        if member.profile is not None and device_type in (None, member.type):
            for field in member.profile.fields:
                kinds[field.name] = common_kind(kinds.get(field.name, field.kind), field.kind)
    return kinds


class Offline:
    """One run offline, with a director.

    Parameters
    ----------
    fleet : Fleet
    director : Director
    start_us : int
    to : path or None
        A Parquet file to stream to.
    origin : Checkpoint, optional
        Where to go on from, if what the director does before it was done in it.
    """

    def __init__(
        self, fleet: Fleet, director: Director, start_us: int, to: str | Path | None,
        origin: Checkpoint | None = None,
    ) -> None:
        self._fleet, self._director, self._start_us = fleet, director, start_us
        if director.end_us is not None:
            end_us_of(start_us, director.end_us)
        self._actions: list[Action] = []
        self._now_us = start_us
        self._withheld = 0
        if origin is not None and to is None:
            state = origin.copy()
            assert state.simulation is not None, "see origin_of"
            self._simulation, self._digests, self._capture = (
                state.simulation, state.digests, state.capture)
            self._actions, self._now_us = list(state.actions), start_us + state.at_us
            self._withheld = state.withheld
        else:
            self._simulation = Simulation(fleet.members, fleet.seed, start_us)
            self._digests, self._capture = Digest(start_us), Capture(Bound())
        self._writer: Writer | None = None
        if to is not None:
            self._writer = Writer(to, self._simulation.groups, kinds_of(fleet))
            self._capture = Capture(Bound(span_us=max(1, director.needs_us)))
        self._stage = Stage(fleet, self._simulation, self._actions, self._capture.chunks,
                            self._totals)
        self._window = _Window(self._simulation)

    def run(self, progress: Progress) -> Result:
        """Go to the end; returns what it left."""
        director = self._director
        total_us = director.end_us
        title = f"{self._fleet.name} {'' if total_us is None else clock_text(total_us)}".strip()
        try:
            with bar(title, (total_us or 0) / 1e6, progress) as shown:
                self._go(shown.update)
            if self._writer is not None:
                self._writer.close()
        except BaseException:
            if self._writer is not None:
                self._writer.abandon()
            raise
        finally:
            director.close()
            self._simulation.close()
        return self._result()

    def _go(self, moved: Callable[[float], None]) -> None:
        director, start_us = self._director, self._start_us
        while True:
            due_us, total_us = director.next_us, director.end_us
            at_us = self._now_us - start_us
            if due_us is not None and due_us <= at_us:
                director.act(self._stage)
                continue
            if (total_us is not None and at_us >= total_us) or (total_us is due_us is None):
                return
            stops = [at_us + self._window.next_us()]
            stops += [stop for stop in (due_us, total_us) if stop is not None]
            until_us = end_us_of(start_us, min(stops))
            for readings in self._simulation.advance(until_us):
                self._take(readings)
            moved((until_us - self._now_us) / 1e6)
            self._now_us = until_us

    def _take(self, readings: Readings) -> None:
        self._digests.add(readings)
        if readings.marks is not None and readings.marks.withheld is not None:
            self._withheld += int((readings.marks.withheld > 0).sum())
        if self._writer is not None:
            self._writer.add(readings)
        if self._writer is None or self._director.needs_us:
            self._capture.add(readings)

    def _totals(self) -> Totals:
        return Totals(self._digests.rows, self._withheld, self._simulation.failures.count)

    def _result(self) -> Result:
        notes = [action.note for action in self._actions if action.note] + self._director.notes
        capture = Capture(Bound()) if self._writer is not None else self._capture
        return Result(
            fleet=self._fleet,
            start_us=self._start_us,
            end_us=self._now_us,
            groups=tuple(self._simulation.groups),
            capture=capture,
            digests=self._digests,
            errors=(*self._director.errors, *self._simulation.failures.kept),
            actions=tuple(self._actions),
            path=None if self._writer is None else self._writer.path,
            notes=tuple(notes),
            expectations=tuple(self._director.expectations),
            history=self._simulation,
            scenario=self._director.name,
        )


class _Window:
    """How far to go at a time, so that rows come in handy numbers.

    Profiles say how many rows they give; for scripted devices the window grows and shrinks with
    what the last one gave.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._script_us = SCRIPT_WINDOW_US
        self._blocks: tuple[Any, int] = ((), WINDOW_US_IDLE)

    def next_us(self) -> int:
        """Return the length of the next window."""
        if not self._simulation.casts:
            return self._block_us()
        rows = self._simulation.script_rows
        if rows > SCRIPT_ROWS:
            self._script_us = max(WINDOW_US_MIN, self._script_us // 2)
        elif rows < SCRIPT_ROWS // 4:
            self._script_us *= 2
        return min(self._script_us, self._block_us())

    def _block_us(self) -> int:
        blocks = tuple(map(id, self._simulation.blocks))
        if blocks != self._blocks[0]:
            self._blocks = blocks, self._whole_us()
        return self._blocks[1]

    def _whole_us(self) -> int:
        rate_hz = self._simulation.rate_hz
        if not rate_hz:
            return WINDOW_US_IDLE
        window_us = int(WINDOW_ROWS / rate_hz * 1e6)
        # Whole intervals give the blocks whole rectangles.
        longest_us = max(block.profile.interval_us for block in self._simulation.blocks)
        whole_us = window_us // longest_us * longest_us or window_us
        return max(WINDOW_US_MIN, whole_us)
