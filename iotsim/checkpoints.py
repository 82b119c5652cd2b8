"""Going back: a run kept as it was at a moment, and other futures from there.

A checkpoint holds the state of every device, so that a branch need not compute what came before.
Scripted devices have no state that could be kept: a branch of a run with such devices is computed
from the start.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iotsim.actions import Action
from iotsim.capture import Bound, Capture
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.engine.twin import twin_of
from iotsim.errors import BadValue
from iotsim.units import Duration, duration_text, duration_us

if TYPE_CHECKING:
    from iotsim.director import Step
    from iotsim.driver import Driver
    from iotsim.fleet import Fleet
    from iotsim.intake import Intake
    from iotsim.result import Result
    from iotsim.scenario import Scenario


CHECKPOINTS_MAX = 100  # of one run


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checkpoint:
    """A run as it was at a moment.

    For 100,000 devices of three fields it takes 15 MB and 0.03 s, measured; captured readings are
    shared with the run, and stay for as long as the checkpoint does.

    Attributes
    ----------
    at_us : int
        Since the start of the run; everything before it is in.
    simulation : Simulation or None
        None where devices are scripted.
    digests : Digest
    capture : Capture
        What the run held of its readings by then.
    actions : tuple of Action
        What had been done or logged by then; what changed only the pace is left out.
    withheld : int
        How many readings had never left their device's link.
    """

    at_us: int
    simulation: Simulation | None
    digests: Digest
    capture: Capture
    actions: tuple[Action, ...]
    withheld: int

    @property
    def at(self) -> float:
        """Simulated seconds since the start of the run."""
        return self.at_us / 1e6

    def __repr__(self) -> str:
        scripted = "; scripted devices, so a branch begins at the start"
        tail = scripted if self.simulation is None else ""
        return f"<Checkpoint at {self.at:g} s: {self.digests.rows:,} readings{tail}>"

    def copy(self) -> Checkpoint:
        """Return a checkpoint that may be gone on from; this one stays as it is."""
        simulation = None if self.simulation is None else twin_of(self.simulation)
        return replace(self, simulation=simulation, digests=_digest(self.digests),
                       capture=_capture(self.capture))


def checkpoint_of(driver: Driver, intake: Intake, actions: list[Action]) -> Checkpoint:
    """Return a live run as it is at the first boundary that nothing has begun."""
    simulation = driver.simulation
    with intake.lock:
        intake.flush()
        return Checkpoint(
            driver.begun_us - simulation.start_us,
            None if simulation.casts else twin_of(simulation),
            _digest(intake.digests),
            _capture(intake.capture),
            tuple(action for action in actions if _is_step(action)),
            intake.withheld_rows,
        )


def _is_step(action: Action) -> bool:
    return action.is_content or action.verb == "log"


def _digest(digests: Digest) -> Digest:
    # Groups are shared, and their keys are made of them.
    memo = {id(group): group for group, _, _ in digests.devices()}
    return deepcopy(digests, memo)


def _capture(capture: Capture) -> Capture:
    # What has been let go is gone; from here on everything is kept.
    held = capture.freeze()
    held.chunks()
    held.bound = Bound()
    return held


def branch(result: Result, at: Duration) -> Scenario:
    """Return a scenario for another future; see `Result.branch`."""
    from iotsim.scenario_code import scenario_of

    at_us, length_us = duration_us(at, "at", zero=True), result.end_us - result.start_us
    if at_us > length_us:
        raise BadValue("at", at, f"is after the end of the run, which lasted "
                       f"{duration_text(length_us)}", "Give a moment within it.")
    before = [action for action in result.actions if action.at_us < at_us]
    same = scenario_of(result.fleet, before, result.start_us, result.end_us, result.name)
    usable = [point for point in result.checkpoints
              if point.simulation is not None and point.at_us <= at_us
              and all(action.at_us < at_us for action in point.actions)]
    origin = max(usable, key=lambda point: point.at_us, default=None)
    return same._with(_origin=origin, _now_us=at_us, _since_us=at_us)


def origin_of(scenario: Scenario, start_us: int) -> tuple[Checkpoint, Scenario] | None:
    """Return where a scenario can go on from, and what is left of it there; None: the start.

    It can if all that had been done by then is what the scenario does first, on the same devices,
    from the same start.
    """
    from iotsim.scenario_code import scenario_of

    origin: Checkpoint | None = scenario._origin
    if origin is None or origin.simulation is None or scenario.script is not None:
        return None
    if origin.simulation.start_us != start_us:
        return None
    steps = sorted(scenario.steps, key=lambda step: step.at_us)
    end_us = start_us + origin.at_us
    done = scenario_of(scenario.fleet, origin.actions, start_us, end_us, scenario.name).steps
    left = steps[len(done) :]
    fits = (
        _same_devices(origin.simulation, scenario.fleet)
        and tuple(steps[: len(done)]) == done
        and all(step.at_us >= origin.at_us for step in left)
        and not _looks_back(origin, left)
    )
    return (origin, scenario._with(steps=tuple(left))) if fits else None


def _same_devices(simulation: Simulation, fleet: Fleet) -> bool:
    people = simulation.population
    return people.seed == fleet.seed and (
        tuple(people.members[: len(fleet.members)]) == fleet.members)


def _looks_back(origin: Checkpoint, left: list[Step]) -> bool:
    # Whether somebody will want to look at what the checkpoint does not hold.
    if not any(step.condition for step in left):
        return False
    return bool(origin.capture.evicted_rows) or any(
        action.verb == "add" for action in origin.actions)
