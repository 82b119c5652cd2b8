"""What a dashboard says of a fleet as a whole: by state, by type, and what the runtime needs."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from iotsim import __version__
from iotsim.clock import wall_us
from iotsim.panels.watch import STATES, Bytes
from iotsim.preflight import memory_used_bytes
from iotsim.run import Run

TYPES_SHOWN = 50


def fleet_facts(run: Run, states: Bytes | None) -> dict[str, Any]:
    """Return how many devices are in each state: of all, and of each type, the largest first.

    Parameters
    ----------
    run : Run
    states : uint8 array or None
        By slot, codes into `STATES`; None before the run is connected.
    """
    driver = run.works.driver
    if states is None or driver is None:
        return {"states": dict.fromkeys(STATES, 0), "types": [], "types_hidden": 0}
    people = driver.simulation.population
    names = list(dict.fromkeys(group.device_type for group in people.groups))
    number = {name: i for i, name in enumerate(names)}
    types = np.array([number[group.device_type] for group in people.groups], dtype=np.int32)
    pairs = types[people.home] * len(STATES) + states
    table = np.bincount(pairs, minlength=len(names) * len(STATES)).reshape(-1, len(STATES))
    largest = np.argsort(-table.sum(axis=1), kind="stable")[:TYPES_SHOWN]
    rows = [{"type": names[i], "states": table[i].tolist()} for i in largest.tolist()]
    return {"states": dict(zip(STATES, table.sum(axis=0).tolist(), strict=True)),
            "types": rows, "types_hidden": len(names) - len(rows)}


def runtime_facts(run: Run) -> dict[str, Any]:
    """Return what is known of the process that a run lives in."""
    driver = run.works.driver
    paces = () if driver is None else driver.clock.paces
    up_s = (wall_us() - paces[0][1]) / 1e6 if paces else 0.0
    return {"version": __version__, "python": platform.python_version(), "up": max(0.0, up_s),
            "memory": memory_used_bytes(), "seed": run.fleet.seed}
