"""Going back: a run kept as it was at a moment, and other futures from there.

A checkpoint holds the state of every device, so that a branch need not compute what came before.
Scripted devices have no state that could be kept: a branch of a run with such devices is computed
from the start.
"""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iotsim.actions import Action
from iotsim.capture import Bound, Capture
from iotsim.digest import Digest
from iotsim.engine.simulation import Simulation
from iotsim.errors import BadValue
from iotsim.readings import Group
from iotsim.units import Duration, duration_us

if TYPE_CHECKING:
    from iotsim.driver import Driver
    from iotsim.intake import Intake
    from iotsim.result import Result
    from iotsim.scenario import Scenario


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A run as it was at a moment.

    Attributes
    ----------
    at_us : int
        Since the start of the run; everything before it is in.
    simulation : Simulation or None
        None where devices are scripted.
    digests : Digest
    capture : Capture
    actions : tuple of Action
        What had been done by then.
    withheld : int
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
        return f"<Checkpoint at {self.at:g} s: {self.digests.rows:,} readings>"

    def copy(self) -> Checkpoint:
        """Return a checkpoint that may be gone on from; this one stays as it is."""
        return Checkpoint(self.at_us, _copied(self.simulation), deepcopy_of(self.digests),
                          self.capture.freeze(), self.actions, self.withheld)


def checkpoint_of(driver: Driver, intake: Intake, actions: list[Action]) -> Checkpoint:
    """Return a live run as it is at its last boundary."""
    simulation = driver.simulation
    with intake.lock:
        intake.flush()
        return Checkpoint(
            driver.begun_us - simulation.start_us,
            _copied(simulation),
            deepcopy_of(intake.digests),
            intake.capture.freeze(),
            tuple(action for action in actions if action.is_content),
            intake.withheld_rows,
        )


def _copied(simulation: Simulation | None) -> Any:
    # What never changes is shared: ids, groups, profiles, members, and the links of a live run.
    if simulation is None or simulation.casts:
        return None
    memo: dict[int, Any] = {}
    for part in (*simulation.groups, *simulation.population.members,
                 *simulation.population.profiles, simulation.failures):
        memo[id(part)] = part
    outside = (simulation.witness, simulation.kernel, simulation.parts)
    simulation_alone = copy(simulation)
    for part in outside:
        memo[id(part)] = None
    return deepcopy(simulation_alone, memo)


def deepcopy_of(digests: Digest) -> Digest:
    """Return a digest that goes its own way; groups are shared."""
    memo: dict[int, Any] = {id(group): group for group, _, _ in digests.devices()}
    return deepcopy(digests, memo)


def branch(result: Result, at: Duration) -> Scenario:
    """Return a scenario for another future; see `Result.branch`."""
    raise BadValue("at", at, "is not there yet", "")


__all__ = ("Bound", "Checkpoint", "Group", "branch", "checkpoint_of", "duration_us")
