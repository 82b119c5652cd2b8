"""`fleet.panel()`: what a fleet is, whether it would fit, and how it is started."""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from iotsim.errors import BadValue
from iotsim.fleet import Fleet
from iotsim.members import Members
from iotsim.panels.aside import aside
from iotsim.panels.base import still_html
from iotsim.panels.launch import Launch
from iotsim.panels.menu import value_of
from iotsim.preflight_fleet import Preflight
from iotsim.run import Run
from iotsim.units import US_PER_SECOND, duration_text

GROUPS_SHOWN = 30
PLACES_SHOWN = 8
LABELS_SHOWN = 6
KEPT = 16  # panels that a cell that is run again gets back

_PANELS: OrderedDict[str, FleetPanel] = OrderedDict()  # by name, the latest last


def panel_of(fleet: Fleet) -> FleetPanel:
    """Return the panel of a fleet: that of an equal one, if a cell is run again."""
    found = _PANELS.pop(fleet.name, None)
    if found is None or not _same(found.fleet, fleet):
        found = FleetPanel(fleet)
    _PANELS[fleet.name] = found
    while len(_PANELS) > KEPT:
        _PANELS.popitem(last=False)
    found.look_again()
    return found


class FleetPanel(Launch):
    """A panel of a fleet before it runs.

    Parameters
    ----------
    fleet : Fleet
    """

    def __init__(self, fleet: Fleet) -> None:
        super().__init__("fleet")
        self.fleet = fleet
        self._looking = False
        self._preflight: Preflight | None = None

    @property
    def fleet_name(self) -> str:
        """The name that its run has."""
        return self.fleet.name

    def is_ours(self, run: Run) -> bool:
        """Return whether a live run is one of this fleet."""
        return run.scenario is None and _same(run.fleet, self.fleet)

    def begun(self, speed: Any, message: Mapping[str, Any]) -> Run:
        """Start the fleet."""
        return self.fleet.start(duration_of(message), speed=speed,
                                thread=bool(message.get("thread")),
                                replace=bool(message.get("replace")))

    async def do_preflight(self, message: Mapping[str, Any]) -> None:
        """Look whether a run would fit, while everything else goes on."""
        if self._looking:
            raise BadValue("preflight", self.fleet.name, "is being looked at already",
                           "It takes ten seconds at most.")
        speed, duration = value_of(str(message.get("speed") or "1")), duration_of(message)
        self._looking = True
        self.refresh()
        try:
            self._preflight = await aside(
                lambda: self.fleet.preflight(duration, speed=speed), "iotsim pre-flight")
        finally:
            self._looking = False

    def form(self) -> dict[str, Any]:
        """Return the fleet, as plain JSON."""
        fleet = self.fleet
        shown = fleet.members[:GROUPS_SHOWN]
        places = [*(f"→ {outlet}" for outlet in fleet.outlets),
                  *(f"← {ear}" for ear in fleet.ears)]
        return {
            "name": fleet.name,
            "devices": len(fleet),
            "seed": str(fleet.seed),
            "groups": [list(_row(member)) for member in shown],
            "groups_hidden": len(fleet.members) - len(shown),
            "places": places[:PLACES_SHOWN],
            "places_hidden": max(0, len(places) - PLACES_SHOWN),
            "rate": readings_hz(fleet),
            "scripted": sum(member.count for member in fleet.members
                            if member.interval_us is None),
            "preflight": self._found(),
        }

    def _found(self) -> dict[str, Any]:
        found = self._preflight
        if found is None:
            return {"busy": self._looking, "lines": []}
        return {"busy": self._looking, "ok": found.ok,
                "lines": [[one.ok, one.name, one.text] for one in found.findings]}

    def still(self) -> str:
        """Return the fleet as HTML, for pages where no widget lives."""
        facts = self.facts
        if (run := self.run) is not None:
            return str(run.panel().still())
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                       for row in facts["groups"])
        said = "".join(f"<li>{html.escape(line)}</li>" for line in _lines(facts))
        table = f"<table><tr>{_HEAD}</tr>{rows}</table>" if rows else ""
        return still_html(f"{facts['name']} · {facts['devices']:,} devices, not started",
                          f"{table}<ul>{said}</ul>")

    def __repr__(self) -> str:
        return f"<FleetPanel of {self.fleet!r}>"


_HEAD = "".join(f"<th>{name}</th>" for name in ("type", "count", "every", "labels"))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    if facts["groups_hidden"]:
        yield f"and {facts['groups_hidden']:,} more groups"
    yield f"seed {facts['seed']}"
    yield f"{facts['rate']:,.4g} readings a second at the pace of real time"
    yield from facts["places"]
    for ok, name, text in facts["preflight"]["lines"]:
        yield f"{'✓' if ok else '✗'} {name}: {text}"


def _row(member: Members) -> tuple[str, ...]:
    every = "scripted" if member.interval_us is None else duration_text(member.interval_us)
    labels = [f"{name}={text}" for name, text in member.labels.items()]
    more = [] if len(labels) <= LABELS_SHOWN else [f"and {len(labels) - LABELS_SHOWN} more"]
    return member.type, f"{member.count:,}", every, ", ".join([*labels[:LABELS_SHOWN], *more])


def readings_hz(fleet: Fleet) -> float:
    """Return how many readings a second a fleet makes at the pace of real time."""
    return sum(member.count * US_PER_SECOND / member.interval_us
               for member in fleet.members if member.interval_us is not None)


def duration_of(message: Mapping[str, Any]) -> str | float | None:
    """Return how long somebody wants a run to be; None: until it is stopped."""
    text = str(message.get("duration") or "").strip()
    value = value_of(text)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return text or None


def _same(one: Fleet, other: Fleet) -> bool:
    return one is other or ((one.spec(), one.outlets, one.ears)
                            == (other.spec(), other.outlets, other.ears))
