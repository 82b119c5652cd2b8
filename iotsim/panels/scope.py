"""The instruments that a panel holds to a run: last values, lines, map, fault windows."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakValueDictionary, finalize

from iotsim.clock import monotonic
from iotsim.intake import Viewer
from iotsim.panels.watch import (
    CELLS,
    QUANTILES,
    STATES,
    Bytes,
    Ring,
    Watch,
    field_names,
)
from iotsim.panels.windows import Shade, Shades
from iotsim.run import Run

COLUMNS = ("time", "q05", "q25", "q50", "q75", "q95", "picked", "offered", "acked", "lost",
           "late_p99", "ack_p50", "ack_p99")
assert len(QUANTILES) == 5
BIG = 20_000  # devices from which the map is drawn less often
BIG_CELLS_S, CELLS_S = 1.0, 0.1
POINT_S = 0.2  # of real time between points of the lines

_SCOPES: WeakValueDictionary[str, Scope] = WeakValueDictionary()  # by id of run


def scope_of(run: Run) -> Scope:
    """Return the instruments of a connected run, which all of its panels share."""
    found = _SCOPES.get(run.id)
    if found is None:
        found = _SCOPES[run.id] = Scope(run)
    return found


class Scope:
    """What a panel knows of a run beyond its snapshot.

    Parameters
    ----------
    run : Run
        One that is connected.

    Attributes
    ----------
    field : str
        The field that lines and map show.
    map : dict
        What the map's bytes mean, and how many devices are in each state.
    offenders : list of dict
        The devices that stand out most, and why.
    """

    def __init__(self, run: Run) -> None:
        driver = run.works.driver
        assert driver is not None, "a run that is looked at is connected"
        self._run, self._driver = run, driver
        self._declared = field_names(driver.simulation)
        self._watch = Watch(driver.simulation, self._declared[0] if self._declared else "")
        self._watch.look_at(self._watch.field, run.works.chunks())
        self.shades = Shades(driver.simulation.deeds)
        self.ring = Ring(len(COLUMNS))
        self._cells = b""
        self._cells_s = self._point_s = -math.inf
        self._point_us = -1
        self._range: tuple[float, float] = (0.0, 1.0)
        self.map: dict[str, Any] = {}
        self.offenders: list[dict[str, Any]] = []
        self.company: object = None  # what is kept as long as this is
        run.works.viewers.append(self._watch.took)
        self._closing = finalize(self, _leave, run.works.viewers, self._watch)
        self._closing.atexit = False

    def close(self) -> None:
        """Let go of the run's readings."""
        self._closing()

    @property
    def start_us(self) -> int:
        """Where the run began, microseconds since 1970."""
        return self._run.works.start_us

    @property
    def unit(self) -> str:
        """The unit of the field; empty if it has none, or several."""
        profiles = self._driver.simulation.population.profiles
        units = {field.unit or "" for profile in profiles if profile is not None
                 for field in profile.fields if field.name == self.field}
        return units.pop() if len(units) == 1 else ""

    @property
    def fields(self) -> list[str]:
        """The numeric fields of the profiles at the start, and those that were seen since."""
        seen = [name for name, numeric in self._watch.numbers.items() if numeric]
        return list(dict.fromkeys([*self._declared, *seen]))

    @property
    def field(self) -> str:
        """The field that is looked at."""
        return self._watch.field

    def look_at(self, field: str) -> None:
        """Look at another field, from the readings that are held on."""
        if field not in self.fields or field == self.field:
            return
        self._watch.look_at(field, self._run.works.chunks())
        self.ring = Ring(len(COLUMNS))
        self._range, self._cells_s, self._point_us = (0.0, 1.0), -math.inf, -1

    def pick(self, cell: Any, device_id: Any) -> None:
        """Look at the first device of a cell, or at the one of an id; at none without either."""
        people = self._driver.simulation.population
        slot: int | None = None
        if isinstance(device_id, str) and device_id in people.ids:
            slot = people.ids.index(device_id)
        elif isinstance(cell, int) and cell >= 0:
            slot = cell * max(1, -(-len(people) // CELLS))
        self._watch.picked = slot if slot is not None and slot < len(people) else None

    def picked(self) -> dict[str, Any]:
        """Return the device that is picked, as plain JSON; empty if none is."""
        slot, people = self._watch.picked, self._driver.simulation.population
        if slot is None:
            return {}
        group = people.groups[int(people.home[slot])]
        value = self._watch.value_of(slot)
        return {"id": people.ids[slot], "type": group.device_type, "labels": dict(group.labels),
                "value": None if math.isnan(value) else value,
                "cell": slot // max(1, -(-len(people) // CELLS))}

    def now_us(self) -> int:
        """Return where the simulation is, microseconds since 1970."""
        return min(self._driver.frontier_us, self._run.works.start_us + self._run.elapsed_us)

    def states(self, now_us: int) -> Bytes:
        """Return the state of every device, by slot, as codes into `STATES`."""
        return self._watch.states(now_us)

    def windows(self, now_us: int) -> list[Shade]:
        """Return the faults that are active, or are still in the lines."""
        table = self.ring.table()
        since_us = self._run.works.start_us + int(float(table[0, 0]) * 1e6) if len(table) else 0
        return self.shades.now(now_us, since_us)

    def arrays(self, facts: dict[str, Any]) -> dict[str, bytes]:
        """Return lines and map as they are now; says in `facts` what is in them."""
        works = self._run.works
        if works.intake.viewer_error is not None and self._watch.took not in works.viewers:
            raise works.intake.viewer_error
        if not self.field and self.fields:
            self.look_at(self.fields[0])
        now_us, now_s = self.now_us(), monotonic()
        time_s = (now_us - self._run.works.start_us) / 1e6
        if now_us != self._point_us and now_s - self._point_s >= POINT_S * 0.9:
            self._point_us, self._point_s = now_us, now_s
            self._add_point(now_us, time_s, facts)
        big = len(self._watch) > BIG
        if now_s - self._cells_s >= (BIG_CELLS_S if big else CELLS_S):
            self._cells_s = now_s
            self._draw_map(now_us)
        first, packed = self.ring.packed()
        facts["series"] = {"t0": first, "columns": list(COLUMNS), "now": time_s,
                           "every": self._watch.stride}
        facts["map"], facts["offenders"] = self.map, self.offenders
        return {"lines": packed, "cells": self._cells}

    def _add_point(self, now_us: int, time_s: float, facts: dict[str, Any]) -> None:
        rates, health = facts["rates"], facts["health"]
        bands = self._watch.bands(now_us)
        self.ring.add([time_s, *bands, self._watch.value_of(self._watch.picked),
                       *(_number(rates[name]) for name in ("offered", "acked", "lost")),
                       *(_number(value) for value in (health["late_p99"], rates["ack_p50"],
                                                      rates["ack_p99"]))])
        if not math.isnan(bands[0]):
            low, high = bands[0], bands[-1]
            room = (high - low) * 0.25 or abs(high) * 0.1 or 1.0
            self._range = (low - room, high + room)

    def _draw_map(self, now_us: int) -> None:
        found = self._watch.cells(now_us, *self._range)
        self.map = {"cells": len(found.state), "each": found.each, "low": found.low,
                    "high": found.high, "states": dict(zip(STATES, found.counts, strict=True))}
        people = self._driver.simulation.population
        self.offenders = [{"id": people.ids[slot], "why": why}
                          for slot, why in self._watch.offenders(now_us)
                          if people.ended_us[slot] > now_us]
        self._cells = found.state.tobytes() + found.value.tobytes() + found.overdue.tobytes()


def _leave(viewers: list[Viewer], watch: Watch) -> None:
    if watch.took in viewers:
        viewers.remove(watch.took)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
