"""`iotsim dashboard`: a live fleet as a web page, for people without a notebook.

The page is `notebooks/dashboard.ipynb`, served by Voila on this machine alone. What the command was
asked for reaches the notebook's kernel in one environment variable, which `started` reads.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from iotsim.clock import Speed, check_speed
from iotsim.errors import BadValue
from iotsim.members import check_count

if TYPE_CHECKING:
    from iotsim.fleet import Fleet
    from iotsim.run import Run
    from iotsim.scenario import Scenario

VARIABLE = "IOTSIM_DASHBOARD"
DEVICES = 100
SEED = 42


@dataclass(frozen=True, slots=True)
class Asked:
    """What a dashboard is asked to show; with nothing given, what the notebook has.

    Attributes
    ----------
    scenario : str or None
        A Python file, or the name of a scenario that comes with iotsim.
    profile : str or None
        A profile's name or file.
    devices : int or None
        How many of it; 100 if not given.
    publish : str or None
        Where readings go.
    speed : float or "max" or None
    folder : str
        Where the command was given: relative paths begin there, sessions are saved there.
    """

    scenario: str | None = None
    profile: str | None = None
    devices: int | None = None
    publish: str | None = None
    speed: Speed | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        if self.scenario is not None and self.profile is not None:
            raise BadValue("profile", self.profile, "cannot go with a scenario, which has a fleet "
                           "of its own", "Give one of the two.")
        if self.devices is not None:
            if self.profile is None:
                raise BadValue("devices", self.devices, "needs a profile",
                               "Add --profile, such as --profile pump.")
            check_count(self.devices)
        if self.speed is not None:
            check_speed(self.speed)

    def plan(self, otherwise: Fleet | Scenario) -> Fleet | Scenario:
        """Return the fleet or the scenario that is asked for.

        Raises
        ------
        IotsimError
            If there is none of that name, or readings cannot go there.
        """
        plan = otherwise
        if self.scenario is not None:
            from iotsim.scenario_files import load

            plan = load(self.scenario)
        elif self.profile is not None:
            from iotsim.fleet import Fleet

            plan = Fleet("dashboard", seed=SEED).add(self.profile, count=self.devices or DEVICES)
        return plan if self.publish is None else plan.publish_to(self.publish)

    def text(self) -> str:
        """Return it as the environment carries it."""
        return json.dumps(asdict(self))


def asked() -> Asked:
    """Return what the command was asked for; in a notebook that nobody serves, nothing."""
    text = os.environ.get(VARIABLE)
    if not text:
        return Asked()
    try:
        given: dict[str, Any] = json.loads(text)
        return Asked(**given)
    except (ValueError, TypeError):
        # What it holds may be an address with a password.
        raise BadValue(VARIABLE, "***", "is not what iotsim dashboard writes there",
                       "Unset it.") from None


def started(plan: Fleet | Scenario, speed: Speed = 1) -> Run:
    """Start what `iotsim dashboard` was asked for; in a plain notebook, what is given here.

    Parameters
    ----------
    plan : Fleet or Scenario
    speed : float or "max"
    """
    wanted = asked()
    if wanted.folder:
        os.chdir(wanted.folder)
        import_module("iotsim.panels.dashboard")  # it takes its time: not while the fleet lives
    chosen = wanted.plan(plan)
    given = chosen is not plan
    pace = wanted.speed if wanted.speed is not None else 1 if given else speed
    return chosen.start(speed=pace)
